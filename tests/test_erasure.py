"""Erasure: what is left of users who wished to be forgotten, and who still sees it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ranvier.rooms.visibility import sight_of
from ranvier.storage import migrations
from ranvier.storage.accounts import AccountStore
from ranvier.storage.database import Database
from ranvier.storage.erasure import ErasureStore
from ranvier.storage.presence import PresenceRow, PresenceStore
from ranvier.storage.rooms import SightChange
from ranvier.users.erasure import Erasure
from ranvier.wire.log_rows import LogRow
from tests.account_features import ALICE as FEATURED
from tests.account_features import running_features
from tests.room_endpoints import ALICE, BOB, RoomEndpoints, forget_memory, running_endpoints

MEMBER, VISIBILITY = "m.room.member", "m.room.history_visibility"
ERASED = 50


@pytest.mark.parametrize(
    ("visibility", "changes", "saw"),
    [
        ("shared", [(10, "join")], "before then"),
        ("shared", [(10, "join"), (20, "leave")], "before"),
        ("shared", [(10, "join"), (20, "leave"), (60, "join")], "before"),
        ("shared", [(60, "join")], ""),
        ("shared", [], ""),
        ("joined", [(20, "join")], "then"),
        ("joined", [(60, "join")], ""),
        ("invited", [(20, "invite")], "then"),
        ("invited", [(20, "invite"), (60, "join")], "then"),
        ("world_readable", [], ""),
        ("world_readable", [(60, "join")], ""),
        ("world_readable", [(40, "join")], "before then"),
    ],
)
def test_only_members_of_before_the_erasure_saw_what_was_sent(
    visibility: str, changes: list[tuple[int, str]], saw: str
) -> None:
    """Newcomers would read what an erased user wrote, or old members would lose their history."""
    members = [SightChange(pos, MEMBER, membership) for pos, membership in changes]
    sight = sight_of([SightChange(2, VISIBILITY, visibility), *members])
    assert [name for name, pos in (("before", 5), ("then", 30)) if sight.saw(pos, ERASED)] == saw.split()


def test_state_was_shown_to_all_who_joined_later() -> None:
    """The name of an erased user would change for those who know it from the list of members."""
    changes = [SightChange(2, VISIBILITY, "joined"), SightChange(10, MEMBER, "join")]
    assert sight_of(changes).saw(5, ERASED, is_state=True)
    assert not sight_of(changes).saw(5, ERASED)
    late = [SightChange(2, VISIBILITY, "joined"), SightChange(60, MEMBER, "join")]
    assert not sight_of(late).saw(5, ERASED, is_state=True)


async def erase(app: RoomEndpoints, user_id: str) -> None:
    """Say in the log that a user wishes to be erased."""
    await app.core.database.execute(
        "INSERT INTO accounts (user_id, created_ts) VALUES ($1, 0) ON CONFLICT DO NOTHING", user_id
    )
    row = LogRow(kind="access_token", user_id=user_id, key="account", body=b'{"erased":true}')
    await app.core.tail.wait_for(await app.core.appender.append_rows([row]))


async def conversation(app: RoomEndpoints) -> tuple[str, dict[str, str]]:
    """Let Alice say something to Bob in every way, and be erased; then Carol joins."""
    room_id = await app.core.create_room(BOB)
    ids = {}
    invite = {"membership": "invite", "displayname": "Alice L."}
    ids["invite"] = await app.event(room_id, BOB, MEMBER, invite, ALICE)
    await app.event(room_id, BOB, "m.room.history_visibility", {"history_visibility": "shared"}, "")
    profile = {"membership": "join", "displayname": "Alice L.", "reason": "hello"}
    ids["member"] = await app.event(room_id, ALICE, MEMBER, profile, ALICE)
    await app.event(room_id, BOB, "m.room.power_levels", {"users": {ALICE: 100}}, "")
    ids["name"] = await app.event(room_id, ALICE, "m.room.name", {"name": "Tea"}, "")
    crypt = {"algorithm": "m.megolm.v1.aes-sha2"}
    ids["encryption"] = await app.event(room_id, ALICE, "m.room.encryption", crypt, "")
    ids["text"] = await app.event(room_id, ALICE, "m.room.message", {"body": "secret", "msgtype": "m.text"})
    edit = {
        "body": "* secreter",
        "msgtype": "m.text",
        "m.new_content": {"body": "secreter", "msgtype": "m.text"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": ids["text"]},
    }
    ids["edit"] = await app.event(room_id, ALICE, "m.room.message", edit)
    ids["bobs"] = await app.event(room_id, BOB, "m.room.message", {"body": "well", "msgtype": "m.text"})
    thread = {
        "body": "secret reply",
        "msgtype": "m.text",
        "m.relates_to": {"rel_type": "m.thread", "event_id": ids["bobs"]},
    }
    ids["thread"] = await app.event(room_id, ALICE, "m.room.message", thread)
    await erase(app, ALICE)
    ids["left"] = await app.member(room_id, "alice", "leave")
    await app.member(room_id, "carol", "join")
    return room_id, ids


@pytest.mark.parametrize("from_memory", [True, False])
async def test_newcomers_get_redacted_copies_everywhere(database: str, from_memory: bool) -> None:
    """What somebody wished to be forgotten would be read by everybody who comes later."""
    async with running_endpoints(database) as app:
        room_id, ids = await conversation(app)
        if not from_memory:
            forget_memory(app.core)
        shown: dict[str, Any] = {
            "messages": await app.get(f"{room_id}/messages", "carol", dir="b", limit=100),
            "forwards": await app.get(f"{room_id}/messages", "carol", dir="f", limit=100),
            "federation": await app.get(
                f"{room_id}/messages", "carol", dir="b", filter='{"event_format":"federation"}'
            ),
            "context": await app.get(f"{room_id}/context/{ids['bobs']}", "carol", limit=50),
            "members": await app.get(f"{room_id}/members", "carol"),
            "state": await app.get(f"{room_id}/state", "carol"),
            "member": await app.get(f"{room_id}/state/m.room.member/{ALICE}", "carol"),
            "threads": await app.get(f"/_matrix/client/v1/rooms/{room_id}/threads", "carol"),
            "relations": await app.get(
                f"/_matrix/client/v1/rooms/{room_id}/relations/{ids['bobs']}", "carol"
            ),
        }
        for name in ("text", "edit", "thread", "member", "invite"):
            shown[name] = await app.get(f"{room_id}/event/{ids[name]}", "carol")
        for way, answer in shown.items():
            text = orjson.dumps(answer).decode()
            assert "secret" not in text, way
            assert "Alice L." not in text, way
            assert "hello" not in text, way
        assert shown["text"]["content"] == {}
        assert shown["text"]["sender"] == ALICE
        assert "m.relations" not in shown["text"]["unsigned"]
        assert shown["member"]["content"] == {"membership": "join"}
        assert shown["member"]["unsigned"]["prev_content"] == {"membership": "invite"}
        assert (shown["invite"]["sender"], shown["invite"]["content"]) == (BOB, {"membership": "invite"})
        # Others are shown as they are, and the room is what it was.
        assert (await app.get(f"{room_id}/event/{ids['bobs']}", "carol"))["content"]["body"] == "well"
        assert (await app.get(f"{room_id}/state/m.room.name", "carol")) == {"name": "Tea"}
        assert (await app.get(f"{room_id}/state/m.room.encryption", "carol"))["algorithm"]


async def test_who_is_erased_and_has_not_left_yet_has_no_name_for_newcomers(database: str) -> None:
    """The name of an erased user would be read in the list of who is joined."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room(BOB)
        profile = {"membership": "join", "displayname": "Alice L.", "avatar_url": "mxc://example.org/a"}
        await app.event(room_id, ALICE, MEMBER, profile, ALICE)
        await erase(app, ALICE)
        await app.member(room_id, "carol", "join")
        shown = {
            who: (await app.get(f"{room_id}/joined_members", who))["joined"][ALICE]
            for who in ("bob", "carol")
        }
        known = {"display_name": "Alice L.", "avatar_url": "mxc://example.org/a"}
        assert shown == {"bob": known, "carol": {}}


@pytest.mark.parametrize("from_memory", [True, False])
async def test_who_was_there_goes_on_to_see_what_was_said(database: str, from_memory: bool) -> None:
    """One person's leaving would tear holes into the history of everybody they talked to."""
    async with running_endpoints(database) as app:
        room_id, ids = await conversation(app)
        if not from_memory:
            forget_memory(app.core)
        text = await app.get(f"{room_id}/event/{ids['text']}", "bob")
        assert text["content"]["body"] == "secret"
        assert text["unsigned"]["m.relations"]["m.replace"]["content"]["m.new_content"]["body"] == "secreter"
        invite = await app.get(f"{room_id}/event/{ids['invite']}", "bob")
        assert invite["content"]["displayname"] == "Alice L."
        left = await app.get(f"{room_id}/event/{ids['left']}", "bob")
        assert left["unsigned"]["prev_content"]["displayname"] == "Alice L."
        newcomer = await app.get(f"{room_id}/event/{ids['left']}", "carol")
        assert newcomer["unsigned"]["prev_content"] == {"membership": "join"}
        # Coming back later changes nothing for who had seen it.
        await app.member(room_id, "bob", "leave")
        await app.member(room_id, "bob", "join")
        assert (await app.get(f"{room_id}/event/{ids['text']}", "bob"))["content"]["body"] == "secret"


async def test_a_redaction_by_an_erased_user_hides_its_reason_from_newcomers(database: str) -> None:
    """The words of an erased user would be read beside the event that they redacted."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.member(room_id, "bob", "join")
        event_id = await app.event(room_id, BOB, "m.room.message", {"body": "well", "msgtype": "m.text"})
        await app.ask("PUT", f"{room_id}/redact/{event_id}/1", "alice", {"reason": "secret"})
        await erase(app, ALICE)
        await app.member(room_id, "carol", "join")
        seen = await app.get(f"{room_id}/event/{event_id}", "bob")
        assert seen["unsigned"]["redacted_because"]["content"]["reason"] == "secret"
        hidden = await app.get(f"{room_id}/event/{event_id}", "carol")
        assert "reason" not in hidden["unsigned"]["redacted_because"]["content"]
        assert hidden["content"] == {}


@pytest.mark.parametrize("erase", [True, False])
async def test_what_was_a_users_own_is_removed(database: str, erase: bool) -> None:
    """Notes, rules, contacts and status messages of people who left would stay on the server for ever."""
    async with running_features(database) as features:
        core = features.core
        room_id = await core.create_room(FEATURED)
        await features.ok(
            "alice", "PUT", f"/user/{FEATURED}/account_data/m.direct", {"@bob:example.org": ["!a"]}
        )
        await features.ok("alice", "PUT", f"/user/{FEATURED}/rooms/{room_id}/tags/u.x", {})
        await features.ok(
            "alice", "PUT", "/pushrules/global/content/tea", {"pattern": "tea", "actions": ["notify"]}
        )
        await features.ok("alice", "POST", f"/user/{FEATURED}/filter", {"room": {"timeline": {"limit": 3}}})
        await features.ok("alice", "PUT", f"/profile/{FEATURED}/displayname", {"displayname": "Alice L."})
        await features.ok("alice", "PUT", f"/profile/{FEATURED}/org.example.x", {"org.example.x": "y"})
        await PresenceStore(core.database).put([PresenceRow(FEATURED, "at tea", 1, None)])
        receipt = orjson.dumps({"event_id": "$x", "event_pos": 1, "ts": 1})
        await core.appender.append_rows(
            [
                LogRow(kind="receipt", room_id=room_id, user_id=user, key="m.read", key2="", body=receipt)
                for user in (FEATURED, "@bob:example.org")
            ]
        )
        for table, columns in (
            ("key_backups", "(user_id, version, algorithm, auth_data) VALUES ($1, 1, 'a', '')"),
            ("cross_signing_keys", "(user_id, usage, public_key, key) VALUES ($1, 'master', 'k', '')"),
        ):
            await core.database.execute(f"INSERT INTO {table} {columns}", FEATURED)
        farewells: list[tuple[Any, ...]] = []

        async def set_presence(*said: Any) -> None:
            farewells.append(said)

        erasure = Erasure(store=ErasureStore(core.database), set_presence=set_presence)
        await erasure.say_farewell(FEATURED)
        await erasure.remove(FEATURED, erase=erase)
        await erasure.remove(FEATURED, erase=erase)  # a server that stopped in between does it again
        assert farewells == [(FEATURED, None, "offline", None)]
        own = ("account_data", "push_rules", "filters", "key_backups", "cross_signing_keys")
        shown = ("profiles", "profile_changes", "receipts")
        for table in (*own, *shown):
            left = await core.database.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", FEATURED)
            assert left == (0 if erase or table in own else 1), table
        query = "SELECT count(*) FROM presence WHERE user_id = $1 AND status_msg IS NOT NULL"
        assert await core.database.fetchval(query, FEATURED) == 0
        assert await core.database.fetchval("SELECT count(*) FROM receipts") == (1 if erase else 2)


async def test_who_was_erased_by_an_earlier_release_is_erased_in_full(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What people wished to be forgotten before an update would be shown and kept after it."""
    files = migrations.migration_files()
    database = Database({"dsn": empty_database}, size=1)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "migration_files", lambda: [file for file in files if file[0] < "0080"])
        await migrations.migrate(database, "example.org")
    await database.execute("UPDATE log_head SET pos = 7")
    await database.execute(
        "INSERT INTO accounts (user_id, created_ts, deactivated, erased) VALUES ($1, 0, true, true), "
        "($2, 0, true, false)",
        ALICE,
        BOB,
    )
    await migrations.migrate(database, "example.org")
    assert await ErasureStore(database).erased() == {ALICE: 7}
    assert await AccountStore(database).departing(10) == [(ALICE, True)]
    await database.close()
