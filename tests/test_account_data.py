"""Account data: kept, told to the user's other devices, and to nobody else."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ranvier.spec.filters import parse_filter
from ranvier.sync.sections.account_data import AccountDataSection, RoomAccountDataSection
from tests.account_features import ALICE, BOB, Features, running_features

ROOM = "!room:example.org"
GLOBAL = f"/user/{ALICE}/account_data"
IN_ROOM = f"/user/{ALICE}/rooms/{ROOM}/account_data"


async def test_what_was_set_can_be_read(database: str) -> None:
    """A client's settings would be gone after a restart."""
    async with running_features(database) as features:
        await features.ok("alice", "PUT", f"{GLOBAL}/org.example.a", {"n": 1})
        await features.ok("alice", "PUT", f"{GLOBAL}/org.example.a", {"n": 2, "é": None})
        await features.ok("alice", "PUT", f"{IN_ROOM}/org.example.a", {"n": 3})
    async with running_features(database) as features:
        assert await features.ok("alice", "GET", f"{GLOBAL}/org.example.a") == {"n": 2, "é": None}
        assert await features.ok("alice", "GET", f"{IN_ROOM}/org.example.a") == {"n": 3}


@pytest.mark.parametrize("place", [GLOBAL, IN_ROOM])
async def test_refusals(database: str, place: str) -> None:
    """A stranger could read or change somebody's settings, or a client break the server's own."""
    async with running_features(database) as features:
        for type_ in ("m.fully_read", "m.push_rules"):
            assert await features.refused("alice", "PUT", f"{place}/{type_}", {}) == (405, "M_BAD_JSON")
        assert await features.refused("bob", "PUT", f"{place}/a.b", {}) == (403, "M_FORBIDDEN")
        assert await features.refused("bob", "GET", f"{place}/a.b") == (403, "M_FORBIDDEN")
        assert await features.refused("alice", "GET", f"{place}/a.b") == (404, "M_NOT_FOUND")
        assert await features.refused("alice", "PUT", f"{place}/a.b", [1]) == (400, "M_BAD_JSON")
        assert await features.refused("alice", "PUT", f"{place}/a.b", b"{") == (400, "M_NOT_JSON")
        assert await features.refused("alice", "PUT", f"{place}/a%00b", {}) == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "PUT", f"{place}/{'x' * 256}", {}) == (400, "M_INVALID_PARAM")
        bad_room = f"/user/{ALICE}/rooms/nonsense/account_data/a.b"
        assert await features.refused("alice", "PUT", bad_room, {}) == (400, "M_INVALID_PARAM")


async def test_push_rules_can_be_read_as_account_data(database: str) -> None:
    """A client that looks for m.push_rules in account data would find none."""
    async with running_features(database) as features:
        content = await features.ok("alice", "GET", f"{GLOBAL}/m.push_rules")
        assert content == await features.ok("alice", "GET", "/pushrules/")
        assert "override" in content["global"]


def sections(features: Features) -> tuple[AccountDataSection, RoomAccountDataSection]:
    tail = features.core.tail
    return (
        AccountDataSection(store=features.account_data_store, push_rules=features.push_rules, tail=tail),
        RoomAccountDataSection(store=features.account_data_store, tail=tail),
    )


def by_type(section: bytes | None) -> dict[str, Any]:
    return {it["type"]: it["content"] for it in orjson.loads(section)["events"]} if section else {}


def by_room(rooms: Any) -> dict[str, dict[str, Any]]:
    return {
        room_id: {it["type"]: it["content"] for it in map(orjson.loads, events)}
        for room_id, events in rooms.items()
    }


@pytest.mark.parametrize("in_tail", [True, False])
async def test_another_device_is_told_of_changes_once(database: str, in_tail: bool) -> None:
    """Settings changed on one device would not reach the other, be it connected or away for a month."""
    async with running_features(database) as features:
        own, rooms = sections(features)
        await features.account_data.set(ALICE, "a.old", {"n": 0})
        before = features.core.tail.pos
        await features.account_data.set(ALICE, "a.new", {"n": 1})
        await features.account_data.set(ALICE, "a.new", {"n": 2})
        await features.account_data.set(ALICE, "a.room", {"n": 3}, ROOM)
        await features.account_data.set(ALICE, "a.room", {"n": 4}, "!elsewhere:example.org")
        await features.account_data.set(BOB, "a.his", {"n": 5})
        await features.tags.put(ALICE, ROOM, "u.work", {"order": 0.5})
        context = features.context(ALICE, [ROOM], since=before, in_tail=in_tail)
        assert by_type(await own.since(context)) == {"a.new": {"n": 2}}
        told = by_room(await rooms.since(context))
        assert told == {ROOM: {"a.room": {"n": 3}, "m.tag": {"tags": {"u.work": {"order": 0.5}}}}}
        await features.ok(
            "alice", "PUT", "/pushrules/global/override/.m.rule.master/enabled", {"enabled": True}
        )
        context = features.context(ALICE, [ROOM], since=before, in_tail=in_tail)
        rules = by_type(await own.since(context))["m.push_rules"]
        assert rules["global"]["override"][0]["enabled"] is True
        nothing = features.context(ALICE, [ROOM], since=features.core.tail.pos, in_tail=in_tail)
        assert await own.since(nothing) is None
        assert await rooms.since(nothing) == {}


async def test_an_initial_sync_tells_everything_wanted(database: str) -> None:
    """A new device would start without the user's settings."""
    async with running_features(database) as features:
        own, rooms = sections(features)
        await features.account_data.set(ALICE, "a.one", {"n": 1})
        await features.account_data.set(ALICE, "a.two", {"n": 2}, ROOM)
        context = features.context(ALICE, [ROOM])
        assert by_type(await own.initial(context)).keys() == {"a.one", "m.push_rules"}
        assert by_room(await rooms.initial(context, [ROOM])) == {ROOM: {"a.two": {"n": 2}}}
        nothing = parse_filter(
            {"account_data": {"types": []}, "room": {"account_data": {"not_types": ["a.*"]}}}
        )
        context = features.context(ALICE, [ROOM], filter=nothing)
        assert await own.initial(context) is None
        assert await rooms.initial(context, [ROOM]) == {}


async def test_ignoring_takes_effect_at_once(database: str) -> None:
    """Somebody who is ignored would still be heard until the server restarts."""
    async with running_features(database) as features, running_features(database) as other:
        assert await features.ignored.of(ALICE) == frozenset()
        assert await other.ignored.of(ALICE) == frozenset()
        content: dict[str, Any] = {"ignored_users": {BOB: {}, ALICE: {}, "nonsense": {}}}
        await features.account_data.set(ALICE, "m.ignored_user_list", content)
        assert await features.ignored.of(ALICE) == {BOB}
        assert await other.core.tail.wait_for(features.core.tail.pos, 10)
        assert await other.ignored.of(ALICE) == {BOB}
        for broken in ({}, {"ignored_users": [BOB]}):
            await features.account_data.set(ALICE, "m.ignored_user_list", broken)
            assert await features.ignored.of(ALICE) == frozenset()


async def test_blocked_invitations(database: str) -> None:
    """A user who wants no invitations would get them."""
    async with running_features(database) as features:
        assert not await features.account_data.invites_blocked(ALICE)
        await features.account_data.set(ALICE, "m.invite_permission_config", {"default_action": "block"})
        assert await features.account_data.invites_blocked(ALICE)
        await features.account_data.set(ALICE, "m.invite_permission_config", {"default_action": ["block"]})
        assert not await features.account_data.invites_blocked(ALICE)
