"""New users come into the rooms of the configuration, and have a name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ranvier.http.limits import RateLimiter
from ranvier.log.clock import SystemClock
from ranvier.processes.accounts import AccountParts, build_accounts
from ranvier.processes.register_user import register_user
from ranvier.spec.errors import MatrixError
from ranvier.storage.aliases import AliasStore
from ranvier.storage.auto_joins import AutoJoinStore
from ranvier.users.auto_join import AutoJoin
from tests.account_server import CHEAP, PASSWORD, account_server, read_config
from tests.core import SERVER_NAME
from tests.rooms_app import RoomsApp, running_rooms_app

LOBBY, TEA = f"#lobby:{SERVER_NAME}", f"#tea:{SERVER_NAME}"
BOTH = CHEAP + f"auto_join_rooms: ['{LOBBY}', '{TEA}']\n"
HOSTED = BOTH + "auto_join_mxid_localpart: host\n"


class Clock(SystemClock):
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@dataclass
class Lobby:
    """Rooms and accounts, and what joins the ones to the others."""

    app: RoomsApp
    accounts: AccountParts
    auto_join: AutoJoin
    clock: Clock

    async def register(self, name: str, **more: Any) -> str:
        """Make a user."""
        return await self.accounts.registration.register(name, PASSWORD, **more)

    async def waiting(self) -> int:
        """Say how many users are still to be joined."""
        count: int = await self.app.core.database.fetchval("SELECT count(*) FROM auto_joins")
        return count

    async def settled(self, left: int = 0) -> None:
        """Wait until no more than these are waiting, and each of them was tried."""
        query = "SELECT count(*) FROM auto_joins WHERE attempts = 0"
        async with asyncio.timeout(20):
            while await self.waiting() > left or await self.app.core.database.fetchval(query):
                await asyncio.sleep(0.01)

    async def room_of(self, alias: str) -> str:
        """Give the room of an alias."""
        return (await self.app.aliases.resolve(alias)).room_id

    async def membership(self, alias: str, name: str) -> str | None:
        """Say what a user is in the room of an alias."""
        return await self.app.membership_of(await self.room_of(alias), name)


@asynccontextmanager
async def running_lobby(dsn: str, text: str, *, idle: bool = False) -> AsyncIterator[Lobby]:
    """Run rooms and accounts; unless ``idle``, new users are joined meanwhile."""
    config, clock, new_users = read_config(text), Clock(), asyncio.Event()

    async def depart(user_id: str, erase: bool) -> None:
        raise AssertionError("nobody leaves here")

    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running_rooms_app(dsn))
        accounts = build_accounts(
            app.core,
            config,
            clock=clock,
            limiter=RateLimiter({}),
            depart=depart,
            on_registered=new_users.set,
        )
        stack.callback(accounts.passwords.close)
        auto_join = AutoJoin(
            config=config.registration.auto_join,
            server_name=SERVER_NAME,
            store=AutoJoinStore(app.core.database),
            accounts=accounts.accounts,
            rooms=app.core.rooms,
            aliases=app.aliases,
            membership=app.membership,
            room_creator=app.creator,
            clock=clock,
            new_users=new_users,
        )
        if not idle:
            task = asyncio.create_task(auto_join.run())
            stack.callback(task.cancel)
        yield Lobby(app, accounts, auto_join, clock)


async def test_the_first_user_finds_rooms_and_the_next_ones_come_into_them(database: str) -> None:
    """Newcomers would find themselves alone on a server, or each in a room of their own."""
    async with running_lobby(database, BOTH + "autocreate_auto_join_rooms_federated: false\n") as lobby:
        await lobby.register("alice")
        await lobby.settled()
        rooms = [await lobby.room_of(alias) for alias in (LOBBY, TEA)]
        assert len(set(rooms)) == 2
        create = await lobby.app.content(rooms[0], "m.room.create")
        assert create["m.federate"] is False
        assert await lobby.app.content(rooms[0], "m.room.join_rules") == {"join_rule": "public"}
        assert await lobby.app.content(rooms[0], "m.room.canonical_alias") == {"alias": LOBBY}
        await asyncio.gather(*(lobby.register(f"user{number}") for number in range(20)))
        await lobby.settled()
        for name in ("alice", "user0", "user19"):
            assert [await lobby.membership(alias, name) for alias in (LOBBY, TEA)] == ["join", "join"]
        assert rooms == [await lobby.room_of(alias) for alias in (LOBBY, TEA)]


@pytest.mark.parametrize("preset", ["private_chat", "trusted_private_chat"])
async def test_the_host_makes_private_rooms_and_invites_to_them(database: str, preset: str) -> None:
    """Nobody could be joined to a room that is for invited people only."""
    config = HOSTED + f"autocreate_auto_join_room_preset: {preset}\n"
    async with running_lobby(database, config) as lobby:
        await lobby.register("host")
        await lobby.settled()
        for name in ("alice", "bob"):
            await lobby.register(name)
        await lobby.settled()
        assert await lobby.app.content(await lobby.room_of(LOBBY), "m.room.join_rules") == {
            "join_rule": "invite"
        }
        for name in ("host", "alice", "bob"):
            assert await lobby.membership(LOBBY, name) == "join"


async def test_newcomers_wait_for_a_host_who_is_not_there_yet(database: str) -> None:
    """A stranger could take the name of who owns the first rooms, or newcomers would never be joined."""
    async with running_lobby(database, HOSTED) as lobby:
        await lobby.register("alice")
        await lobby.settled(left=1)
        with pytest.raises(MatrixError):
            await lobby.room_of(LOBBY)
        await lobby.register("host")
        await lobby.settled(left=1)
        lobby.clock.ahead_ms = 60_000
        await lobby.register("bob")  # wakes it
        await lobby.settled()
        create = (await lobby.app.core.rooms.get(await lobby.room_of(LOBBY))).create
        assert create.sender == f"@host:{SERVER_NAME}"
        for name in ("host", "alice", "bob"):
            assert await lobby.membership(LOBBY, name) == "join"


async def test_a_room_that_cannot_be_joined_keeps_nobody_from_the_others(database: str) -> None:
    """One mistake in a list of rooms would leave all newcomers outside of all rooms."""
    config = BOTH + "autocreate_auto_join_rooms: false\n"
    async with running_lobby(database, config) as lobby:
        await lobby.app.create("admin", room_alias_name="tea", preset="public_chat")
        await lobby.register("alice")
        await lobby.settled()
        assert await lobby.membership(TEA, "alice") == "join"
        with pytest.raises(MatrixError):
            await lobby.room_of(LOBBY)


@pytest.mark.parametrize("welcome", [True, False])
async def test_guests_are_joined_where_they_may_be(database: str, welcome: bool) -> None:
    """Guests would be put where the administrator does not want them, or become owners of rooms."""
    config = BOTH + f"auto_join_rooms_for_guests: {str(welcome).lower()}\n"
    async with running_lobby(database, config) as lobby:
        guest = await lobby.accounts.registration.register(None, guest=True)
        await lobby.settled()
        with pytest.raises(MatrixError):
            await lobby.room_of(LOBBY)
        state = [{"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}]
        room_id = await lobby.app.create(
            "admin", room_alias_name="lobby", preset="public_chat", initial_state=state
        )
        other = await lobby.accounts.registration.register(None, guest=True)
        await lobby.settled()
        room = await lobby.app.core.rooms.get(room_id)
        assert room.membership_of(other) == ("join" if welcome else None)
        assert room.membership_of(guest) is None
        # Who becomes a user is joined as a user is.
        await lobby.accounts.registration.upgrade_guest(guest, PASSWORD)
        await lobby.settled()
        assert (await lobby.app.core.rooms.get(room_id)).membership_of(guest) == "join"


async def test_whom_a_process_left_another_takes_up(database: str) -> None:
    """Users who registered just before a crash would never come into the rooms."""
    async with running_lobby(database, BOTH, idle=True) as lobby:
        await lobby.register("alice")
        store = AutoJoinStore(lobby.app.core.database)
        taken = await store.take(lobby.clock.now_ms(), again_ms=20_000, most_ms=60_000, limit=10)
        assert taken == [f"@alice:{SERVER_NAME}"]
        # Nobody else takes what is being done, and it is not lost with who did it.
        again = await store.take(lobby.clock.now_ms(), again_ms=20_000, most_ms=60_000, limit=10)
        assert again == []
    async with running_lobby(database, BOTH) as lobby:
        lobby.clock.ahead_ms = 30_000
        await lobby.settled()
        assert await lobby.membership(LOBBY, "alice") == "join"


async def test_a_room_that_was_made_just_before_a_crash_is_the_one(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first user would be alone in one lobby, without a name, and all others in a second one."""
    made = asyncio.Semaphore(0)

    async def crash(*_: Any) -> None:
        made.release()
        raise MatrixError("M_UNKNOWN", 503, "a crash")

    async with running_lobby(database, BOTH) as lobby:
        monkeypatch.setattr(AliasStore, "settle", crash)
        monkeypatch.setattr(AliasStore, "unclaim", crash)
        await lobby.register("alice")
        for _ in range(4):
            await asyncio.wait_for(made.acquire(), 60)
    monkeypatch.undo()
    async with running_lobby(database, BOTH) as lobby:
        lobby.clock.ahead_ms = 30_000
        await lobby.register("bob")
        await lobby.settled()
        for name in ("alice", "bob"):
            assert [await lobby.membership(alias, name) for alias in (LOBBY, TEA)] == ["join", "join"]
        assert await lobby.app.core.database.fetchval("SELECT count(*) FROM rooms") == 2


async def test_the_rooms_wait_for_users_of_the_command_line(database: str, tmp_path: Path) -> None:
    """Users whom the administrator makes would not be where everybody else is."""
    url = urlsplit(database)
    query = parse_qs(url.query)
    args = {"host": query["host"][0], "port": int(query["port"][0]), "user": url.username}
    text = BOTH + f"database: {{name: psycopg2, args: {args | {'dbname': url.path[1:]}}}}\n"
    await asyncio.to_thread(register_user, read_config(text), tmp_path, "root", PASSWORD, True)
    async with running_lobby(database, BOTH) as lobby:
        await lobby.settled()
        assert await lobby.membership(LOBBY, "root") == "join"
        member = await lobby.app.core.database.fetchval("SELECT document FROM profiles")
        assert member == b'{"displayname":"root"}'


async def test_new_users_are_called_by_their_names(database: str) -> None:
    """Rooms would be full of people without a name."""
    async with account_server(database) as server:
        registration, database_ = server.parts.registration, server.core.database
        await registration.register("alice", PASSWORD)
        await registration.register("bob", PASSWORD, display_name="Bob B.")
        await registration.register("carol", PASSWORD, display_name="")
        await registration.register(None, guest=True)
        with pytest.raises(MatrixError) as caught:
            await registration.register("dave", PASSWORD, display_name="x" * 300)
        assert caught.value.errcode == "M_INVALID_PARAM"
        found = {r["user_id"]: r["document"] for r in await database_.fetch("SELECT * FROM profiles")}
        assert found == {
            "@alice:example.org": b'{"displayname":"alice"}',
            "@bob:example.org": b'{"displayname":"Bob B."}',
        }
        assert not await server.parts.accounts.exists("@dave:example.org")
        assert not await database_.fetchval("SELECT count(*) FROM auto_joins")


def test_rooms_elsewhere_are_said_to_be_out_of_reach() -> None:
    """An administrator would wait for users in a room to which none of them can come."""
    config = read_config("auto_join_rooms: ['#a:elsewhere.org']")
    assert [str(problem.message) for problem in config.warnings] == [
        "#a:elsewhere.org is on another server, which this one does not talk to: no effect"
    ]
