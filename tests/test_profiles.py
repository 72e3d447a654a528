"""Profiles: fields, who may look, and how rooms learn of a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft
from ranvier.users import profile_changes
from tests.account_features import ALICE, BOB, GUEST, Features, running_features

PROFILE = f"/profile/{ALICE}"
AVATAR = "mxc://example.org/abcDEF123"


async def test_fields_are_set_shown_and_taken_away(database: str) -> None:
    """Nobody would see a user's name or avatar, or the user not get rid of them."""
    async with running_features(database) as features:
        assert await features.ok(None, "GET", PROFILE) == {}
        await features.ok("alice", "PUT", f"{PROFILE}/displayname", {"displayname": "Alice 🌍"})
        await features.ok("alice", "PUT", f"{PROFILE}/avatar_url", {"avatar_url": AVATAR})
        await features.ok("alice", "PUT", f"{PROFILE}/m.tz", {"m.tz": "Europe/London"})
        await features.ok(
            "alice", "PUT", f"{PROFILE}/org.example.job", {"org.example.job": {"a": [None, 1.5]}}
        )
    async with running_features(database) as features:
        full = {
            "displayname": "Alice 🌍",
            "avatar_url": AVATAR,
            "m.tz": "Europe/London",
            "org.example.job": {"a": [None, 1.5]},
        }
        assert await features.ok("bob", "GET", PROFILE) == full
        assert await features.ok("bob", "GET", f"{PROFILE}/displayname") == {"displayname": "Alice 🌍"}
        assert await features.profiles.get(ALICE) == full
        await features.ok("alice", "DELETE", f"{PROFILE}/m.tz")
        await features.ok("alice", "DELETE", f"{PROFILE}/m.tz")
        await features.ok("alice", "PUT", f"{PROFILE}/avatar_url", {"avatar_url": ""})
        assert (await features.ok("bob", "GET", PROFILE)).keys() == {"displayname", "org.example.job"}
        assert await features.refused("bob", "GET", f"{PROFILE}/m.tz") == (404, "M_NOT_FOUND")
        assert await features.refused("bob", "GET", "/profile/@nobody:example.org") == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("key", "body", "errcode"),
    [
        ("displayname", {}, "M_MISSING_PARAM"),
        ("displayname", {"displayname": None}, "M_BAD_JSON"),
        ("displayname", {"displayname": 7}, "M_BAD_JSON"),
        ("displayname", {"displayname": "x" * 257}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "https://example.org/a.png"}, "M_INVALID_PARAM"),
        ("m.tz", {"m.tz": "../../etc/passwd"}, "M_INVALID_PARAM"),
        ("name", {"name": "x"}, "M_INVALID_PARAM"),
        ("Org.Example", {"Org.Example": "x"}, "M_INVALID_PARAM"),
        ("org." + "x" * 252, {"org." + "x" * 252: 1}, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 65_530}, "M_PROFILE_TOO_LARGE"),
        ("displayname", b"nonsense", "M_NOT_JSON"),
    ],
)
async def test_a_field_that_cannot_be(database: str, key: str, body: Any, errcode: str) -> None:
    """A broken or huge field would reach every client that looks at the profile."""
    async with running_features(database) as features:
        assert await features.refused("alice", "PUT", f"{PROFILE}/{key}", body) == (400, errcode)
        assert await features.ok("alice", "GET", PROFILE) == {}


async def test_only_the_user_changes_a_profile(database: str) -> None:
    """A stranger, a suspended user, or a guest beyond their name, could change a profile."""
    async with running_features(database) as features:
        name = {"displayname": "Mallory"}
        assert await features.refused("bob", "PUT", f"{PROFILE}/displayname", name) == (403, "M_FORBIDDEN")
        assert await features.refused("bob", "DELETE", f"{PROFILE}/displayname") == (403, "M_FORBIDDEN")
        answer = await features.refused("suspended", "PUT", f"{PROFILE}/displayname", name)
        assert answer == (403, "M_USER_SUSPENDED")
        await features.ok("guest", "PUT", f"/profile/{GUEST}/displayname", name)
        answer = await features.refused("guest", "PUT", f"/profile/{GUEST}/a.b", {"a.b": 1})
        assert answer == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_a_field_that_the_server_manages_is_set_once(database: str) -> None:
    """People would change names that come from a directory, or could not have a first one."""
    rules = {"enable_set_avatar_url": False}
    async with running_features(database, profile_rules=rules) as features:
        avatar = {"avatar_url": AVATAR}
        await features.ok("alice", "PUT", f"{PROFILE}/avatar_url", avatar)
        for method, body in (("PUT", {"avatar_url": AVATAR + "2"}), ("PUT", avatar), ("DELETE", None)):
            answer = await features.refused("alice", method, f"{PROFILE}/avatar_url", body)
            assert answer == (403, "M_FORBIDDEN")
        await features.ok("alice", "PUT", f"{PROFILE}/displayname", {"displayname": "A"})
        await features.ok("alice", "PUT", f"{PROFILE}/displayname", {"displayname": "B"})


async def test_profiles_may_be_kept_from_strangers(database: str) -> None:
    """A server that keeps profiles private would show them to anybody."""
    rules = {"require_auth": True, "limit_to_users_who_share_rooms": True}
    async with running_features(database, profile_rules=rules) as features:
        assert await features.refused(None, "GET", PROFILE) == (401, "M_MISSING_TOKEN")
        assert await features.refused("bob", "GET", PROFILE) == (403, "M_FORBIDDEN")
        assert await features.ok("alice", "GET", PROFILE) == {}
        await (
            features.core.create_room()
        )  # public: "users who are joined to rooms … that have a public join rule"
        assert await features.ok("bob", "GET", PROFILE) == {}


async def member(features: Features, room_id: str, user_id: str) -> dict[str, Any]:
    room = await features.core.rooms.get(room_id)
    return room.state["m.room.member", user_id].content


async def told(features: Features) -> None:
    """Wait until no room is left to be told."""
    while await features.core.database.fetchval("SELECT count(*) FROM profile_changes"):
        await features.core.tail.wait_for(features.core.tail.pos + 1, 0.05)


async def test_rooms_learn_of_a_new_name(database: str) -> None:
    """Others in a room would see the old name and avatar for ever."""
    async with running_features(database) as features:
        rooms = [await features.core.create_room() for _ in range(20)]
        for room_id in (rooms[0], rooms[1]):
            await features.core.join(room_id, BOB)
        running = asyncio.create_task(features.profile_changes.run())
        await features.profiles.set_field(ALICE, "displayname", "Al")
        await features.profiles.set_field(ALICE, "displayname", "Alice")
        await features.profiles.set_field(ALICE, "avatar_url", AVATAR)
        await told(features)
        for room_id in rooms:
            expected = {"membership": "join", "displayname": "Alice", "avatar_url": AVATAR}
            assert await member(features, room_id, ALICE) == expected
        assert await member(features, rooms[0], BOB) == {"membership": "join"}
        before = features.core.tail.pos
        await features.profiles.set_field(ALICE, "org.example.job", "none")
        assert features.core.tail.pos == before + 1
        await _end(running)


async def test_rooms_learn_of_a_new_name_after_a_crash(database: str) -> None:
    """A server that stopped right after the change would leave the old name in rooms."""
    async with running_features(database) as features:
        room_id = await features.core.create_room()
        await features.profiles.set_field(ALICE, "displayname", "Alice")
        assert await member(features, room_id, ALICE) == {"membership": "join"}
    async with running_features(database) as features:
        running = asyncio.create_task(features.profile_changes.run())
        await told(features)
        assert await member(features, room_id, ALICE) == {"membership": "join", "displayname": "Alice"}
        await _end(running)


class Frozen:
    """A writer of a process that stands still before it writes, and again after."""

    def __init__(self, writer: RoomWriter) -> None:
        self._writer = writer
        self.asked, self.go_on, self.wrote = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write(self, room_id: str, build: Callable[[Draft], None]) -> None:
        """Write when the test says so."""
        self.asked.set()
        await self.go_on.wait()
        await self._writer.write(room_id, build)
        self.wrote.set()
        await asyncio.Event().wait()


async def test_a_process_that_stood_still_leaves_no_old_name(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a worker stood still and lost the job, an old name would be back in rooms for ever."""
    monkeypatch.setattr(profile_changes, "_RETRY_S", 0.05)
    async with running_features(database) as late, running_features(database) as other:
        room_id = await late.core.create_room()
        frozen = Frozen(late.core.writer)
        monkeypatch.setattr(late.profile_changes, "_writer", frozen)
        await late.profiles.set_field(ALICE, "displayname", "Old")
        losing = asyncio.create_task(late.profile_changes.run())
        await frozen.asked.wait()
        await other.profiles.set_field(ALICE, "displayname", "New")
        running = asyncio.create_task(other.profile_changes.run())
        await told(other)
        frozen.go_on.set()
        await frozen.wrote.wait()
        assert await member(late, room_id, ALICE) == {"membership": "join", "displayname": "Old"}
        await _end(losing)
        assert await other.core.tail.wait_for(late.core.tail.pos)
        async with asyncio.timeout(20):
            await told(other)
        assert await member(other, room_id, ALICE) == {"membership": "join", "displayname": "New"}
        await _end(running)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
