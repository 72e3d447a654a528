"""Searching for users: what is found, by whom, and how the directory follows the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ranvier.cluster.leases import Lease, LeaseLostError
from ranvier.config import ConfigError, load
from ranvier.config.rooms import UserDirectoryConfig
from ranvier.storage.database import Connection
from ranvier.storage.job_leases import JobLeaseStore
from ranvier.storage.user_directory import DirectoryEntry, Source, UserDirectoryStore
from ranvier.users.search_words import fold, query_of, words_of
from ranvier.users.user_directory import UserDirectory
from ranvier.users.user_directory_upkeep import UserDirectoryUpkeep
from tests.core import SERVER_NAME, Core, running_core

ALICE, BOB, CAROL = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol"))
REMOTE = "@zoe:far.example"
CONFIG = UserDirectoryConfig(
    enabled=True,
    search_all_users=False,
    prefer_local_users=False,
    exclude_remote_users=False,
    show_locked_users=False,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@Foo.Bar:Example.ORG", ["foo", "bar", "example", "org"]),
        ("José  ÅNGSTRÖM", ["jose", "angstrom"]),
        ("O'Neill & 'co':*", ["o", "neill", "co"]),
        ("ＦＵＬＬ ﬁ", ["full", "fi"]),
        ("\0\ud800 ()!|", []),
        ("x" * 1000, ["x" * 64]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Somebody would not be found because of a capital, an accent or a quote in their name."""
    assert fold(text) == words


def test_words_of_scripts_without_spaces() -> None:
    """A Japanese or Chinese name would be found by its first character alone."""
    assert "太郎" in words_of("田中太郎")
    assert query_of("太郎 a'b") == "'太郎':* & 'a':* & 'b':*"
    assert query_of(" !? ") == ""
    assert len(words_of("あ" * 300)) <= 64


@dataclass
class Searching:
    """What the tests reach for."""

    core: Core
    store: UserDirectoryStore
    upkeep: UserDirectoryUpkeep

    async def find(self, searcher: str, term: str, limit: int = 10, **config: bool) -> list[str]:
        """Search, with everything in the directory that is in the log."""
        await self.upkeep.catch_up(self.core.database.transaction)
        directory = UserDirectory(
            store=self.store,
            memberships=self.core.memberships,
            config=UserDirectoryConfig(**{**vars_of(CONFIG), **config}),
            server_name=SERVER_NAME,
        )
        return [user.user_id for user in (await directory.search(searcher, term, limit)).users]

    async def account(self, user_id: str) -> None:
        """Make an account."""
        await self.core.database.execute("INSERT INTO accounts (user_id, created_ts) VALUES ($1, 0)", user_id)

    async def member(self, room_id: str, user_id: str, membership: str = "join", **content: Any) -> str:
        """Change a membership and give the event's id."""
        full = {"membership": membership, **content}
        row = await self.core.writer.write(
            room_id,
            lambda draft: draft.add(sender=user_id, type="m.room.member", state_key=user_id, content=full),
        )
        return row.event_id


def vars_of(config: UserDirectoryConfig) -> dict[str, bool]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@asynccontextmanager
async def searching(dsn: str) -> AsyncIterator[Searching]:
    """Run the core with a directory of three accounts, whose upkeep is done by ``find``."""
    async with running_core(dsn) as core:
        store = UserDirectoryStore(core.database)
        found = Searching(core, store, UserDirectoryUpkeep(store=store, tail=core.tail))
        for user_id in (ALICE, BOB, CAROL):
            await core.database.execute(
                "INSERT INTO accounts (user_id, created_ts) VALUES ($1, 0) ON CONFLICT DO NOTHING", user_id
            )
        yield found


async def test_who_is_found_by_whom(database: str) -> None:
    """Users would find nobody to talk to, or strangers in private rooms would be shown to all."""
    async with searching(database) as search:
        core = search.core
        assert await search.find(ALICE, "bob") == []
        room_id = await core.create_room()  # public
        await core.join(room_id, BOB)
        assert await search.find(CAROL, "bob") == [BOB]
        assert await search.find(CAROL, "BO") == [BOB]
        assert await search.find(CAROL, f"@bob:{SERVER_NAME}") == [BOB]
        assert await search.find(BOB, "bob") == []
        for type, content in (("m.room.join_rules", {"join_rule": "invite"}),):
            await core.writer.write(
                room_id,
                lambda draft, type=type, content=content: draft.add(  # type: ignore[misc]
                    sender=ALICE, type=type, state_key="", content=content
                ),
            )
        assert await search.find(CAROL, "bob") == []
        assert await search.find(ALICE, "bob") == [BOB]
        await core.writer.write(
            room_id,
            lambda draft: draft.add(
                sender=ALICE,
                type="m.room.history_visibility",
                state_key="",
                content={"history_visibility": "world_readable"},
            ),
        )
        assert await search.find(CAROL, "bob") == [BOB]
        await search.member(room_id, BOB, "leave")
        assert await search.find(CAROL, "bob") == []
        assert await search.find(CAROL, "bob", search_all_users=True) == [BOB]
        assert await search.find(CAROL, "bob", search_all_users=True, enabled=False) == []


async def test_users_of_other_servers(database: str) -> None:
    """Somebody who changed their name would be found by the old one, or gone users for ever."""
    async with searching(database) as search:
        room_id = await search.core.create_room()
        event_id = await search.member(room_id, REMOTE, displayname="Zoë Zebra", avatar_url="mxc://a/b")
        assert await search.find(CAROL, "zoe") == [REMOTE]
        assert await search.find(CAROL, "zeb zo") == [REMOTE]
        assert await search.find(CAROL, "ebra") == []
        assert await search.find(CAROL, "zebra", exclude_remote_users=True) == []
        (found,) = (await _results(search, "zebra")).users
        assert found == (REMOTE, "Zoë Zebra", "mxc://a/b")
        row = (await search.core.events.by_ids([event_id]))[event_id]
        await search.core.writer.write(
            room_id,
            lambda draft: draft.add(
                sender=ALICE,
                type="m.room.redaction",
                content={"redacts": event_id},
                redacts=row,
            ),
        )
        assert await search.find(CAROL, "zebra") == []
        assert await search.find(CAROL, "zoe") == [REMOTE]
        await search.member(room_id, REMOTE, displayname="Other")
        assert await search.find(CAROL, "other") == [REMOTE]
        await search.member(room_id, REMOTE, "leave")
        assert await search.find(CAROL, "zoe", search_all_users=True) == []


async def _results(search: Searching, term: str, limit: int = 10) -> Any:
    directory = UserDirectory(
        store=search.store, memberships=search.core.memberships, config=CONFIG, server_name=SERVER_NAME
    )
    return await directory.search(CAROL, term, limit)


async def test_the_best_come_first(database: str) -> None:
    """Who is meant would be hidden behind others whose names only begin alike."""
    async with searching(database) as search:
        room_id = await search.core.create_room()
        names = {
            f"@aa1:{SERVER_NAME}": "Mary Smith",
            f"@aa2:{SERVER_NAME}": "Smithson",
            "@aa3:far.example": "Smith",
            f"@zz:{SERVER_NAME}": "Smith Jones",
        }
        for user_id, name in names.items():
            await search.member(room_id, user_id, displayname=name)
        one, two, three, four = names
        assert await search.find(CAROL, "smith") == [three, two, four, one]
        assert await search.find(CAROL, "smi", prefer_local_users=True) == [two, four, one, three]
        assert await search.find(CAROL, "smith", 2) == [three, two]
        assert (await _results(search, "smith", 2)).limited
        assert not (await _results(search, "smith", 4)).limited
        await search.account(one)
        await search.core.database.execute("UPDATE accounts SET locked = true WHERE user_id = $1", one)
        assert await search.find(CAROL, "aa1") == []
        assert await search.find(CAROL, "aa1", show_locked_users=True) == [one]
        await search.core.database.execute("UPDATE accounts SET deactivated = true WHERE user_id = $1", one)
        assert await search.find(CAROL, "aa1", show_locked_users=True) == []


async def test_rooms_from_before_and_much_at_once(database: str) -> None:
    """Members of a room of another server, or from before an update, would be missing."""
    async with searching(database) as search:
        room_id = await search.core.create_room()
        for number in range(5):
            await search.member(room_id, f"@many{number}:far.example", displayname=f"Crowd {number}")
        room = await search.core.rooms.get(room_id)
        # as if the state had come with the room, at position 0
        await search.core.database.execute(
            "UPDATE state_deltas SET pos = 0 WHERE room_nid = $1 AND state_key LIKE '@many%'", room.room_nid
        )
        assert len(await search.find(CAROL, "crowd")) == 5
        assert await search.store.progress() == search.core.tail.pos
        await search.core.database.execute("UPDATE user_directory_progress SET pos = 0")
        await search.core.database.execute("TRUNCATE user_directory, user_directory_rooms")
        assert len(await search.find(CAROL, "crowd")) == 5


async def test_a_process_that_stood_still_writes_no_old_name(database: str) -> None:
    """After a worker stood still and lost the job, somebody would be found by an old name, or who is gone."""
    async with searching(database) as search:
        core = search.core
        room_id = await core.create_room()
        await core.join(room_id, BOB)
        assert await search.find(ALICE, "bob") == [BOB]
        leases = JobLeaseStore(core.database)
        epoch = await leases.take("user directory", "first", 10_000)
        assert epoch is not None
        lease = Lease("user directory", epoch, store=leases, database=core.database)
        read = search.store.sources

        async def freeze(user_ids: Sequence[str]) -> list[Source]:
            found = await read(user_ids)
            search.store.sources = read  # type: ignore[method-assign]
            await core.database.execute("UPDATE job_leases SET until = '-infinity'")
            assert await leases.take("user directory", "second", 10_000)
            await core.database.execute("UPDATE accounts SET deactivated = true WHERE user_id = $1", BOB)
            await search.account("@other:example.org")
            assert await search.find(ALICE, "other") == []
            return found

        await core.database.execute("INSERT INTO user_directory_new VALUES ($1)", BOB)
        await core.database.execute("DELETE FROM user_directory WHERE user_id = $1", BOB)
        search.store.sources = freeze  # type: ignore[method-assign]
        with pytest.raises(LeaseLostError):
            await search.upkeep.catch_up(lease.transaction)
        assert (
            await core.database.fetchval("SELECT count(*) FROM user_directory WHERE user_id = $1", BOB) == 0
        )


async def test_strange_names(database: str) -> None:
    """One odd name from another server would keep everybody else out of the directory."""
    async with searching(database) as search:
        room_id = await search.core.create_room()
        names: list[Any] = [
            "\0",
            7,
            "'\\ & | ! <-> :*",
            "\U0001f4a5" * 500,
            "\ufdfa" * 400,
            {"a": 1},
            None,
            " ",
        ]
        for number, name in enumerate(names):
            await search.member(room_id, f"@odd{number}:far.example", displayname=name, avatar_url=name)
        odd = [f"@odd{number}:far.example" for number in range(len(names))]
        assert sorted(await search.find(CAROL, "odd", limit=20)) == odd
        put = search.store.put

        async def picky(
            connection: Connection, entries: Sequence[DirectoryEntry], gone: Sequence[str]
        ) -> None:
            if any(entry.user_id == odd[3] for entry in entries):
                raise asyncpg.DataError("not this one")
            await put(connection, entries, gone)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search.store, "put", picky)
            for user_id in odd:
                await search.member(room_id, user_id, displayname="Renamed")
            assert sorted(await search.find(CAROL, "renamed", limit=20)) == [*odd[:3], *odd[4:]]


def test_the_configuration(tmp_path: Path) -> None:
    """An administrator's settings for the user directory would be passed over."""
    file = tmp_path / "homeserver.yaml"
    file.write_text("server_name: example.org\n")
    assert load([file]).user_directory == CONFIG
    names = [name for name in vars_of(CONFIG) if name != "enabled"]
    settings = "".join(f"  {name}: true\n" for name in names)
    file.write_text(f"server_name: example.org\nuser_directory:\n  enabled: false\n{settings}")
    config = load([file])
    assert vars_of(config.user_directory) == {"enabled": False, **dict.fromkeys(names, True)}
    assert config.warnings == ()
    file.write_text("server_name: example.org\nuser_directory:\n  search_all_users: maybe\n")
    with pytest.raises(ConfigError):
        load([file])
