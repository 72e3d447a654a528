"""What /sync tells of rooms that a user left, was never let into, or was away from for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from ranvier.spec.filters import parse_filter
from ranvier.wire.log_rows import EventRow
from tests.syncing import ALICE, BOB, CAROL, Syncing, running_sync

EVERYTHING = parse_filter({"room": {"include_leave": True, "timeline": {"limit": 1000}}})


@pytest.fixture
async def syncing(database: str) -> AsyncIterator[Syncing]:
    """Give the process."""
    async with running_sync(database) as syncing:
        yield syncing


def _left(answer: Any, room_id: str, key: str = "state") -> tuple[list[str], dict[str, Any]]:
    """Give what is told of a room that was left: the timeline's ids, and contents by type of the state."""
    room = answer["rooms"]["leave"][room_id]
    state = {event["type"]: event["content"] for event in room[key]["events"]}
    return [event["event_id"] for event in room["timeline"]["events"]], state


async def _stay_outside(syncing: Syncing, room_id: str, way: str) -> EventRow:
    """Let Bob come to a room's door and go, while somebody says something inside."""
    if way != "is banned":
        knocks = way == "takes a knock back"
        await syncing.move(room_id, BOB, "knock" if knocks else "invite", BOB if knocks else ALICE)
    await syncing.say(room_id, "secret", ALICE)
    await syncing.put(room_id, ALICE, "m.room.topic", {"topic": "secret"})
    if way == "is banned":
        return await syncing.move(room_id, BOB, "ban", ALICE)
    return await syncing.move(room_id, BOB, "leave")


@pytest.mark.parametrize("way", ["takes a knock back", "declines", "is banned"])
@pytest.mark.parametrize("visibility", ["shared", "joined", "world_readable"])
async def test_who_was_never_in_a_room_is_told_nothing_of_it(
    syncing: Syncing, way: str, visibility: str
) -> None:
    """Anybody could read a private room by knocking and thinking better of it."""
    before = syncing.now()
    room_id = await syncing.create_room((CAROL,), "knock", visibility)
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "secret"})
    since = syncing.now()
    last = await _stay_outside(syncing, room_id, way)
    answers = [await syncing.answer(since, EVERYTHING, BOB)]
    assert before.pos >= syncing.core.tail.start
    for start in (before, since, None):
        answers.append(await syncing.answer(start, EVERYTHING, BOB))
        answers.append(await syncing.answer(start, EVERYTHING, BOB, full_state=True))
    await syncing.fill_tail()
    assert since.pos < syncing.core.tail.start
    answers += [await syncing.answer(start, EVERYTHING, BOB) for start in (before, since, None)]
    for answer in answers:
        assert _left(answer, room_id) == ([last.event_id], {})
        assert b"secret" not in orjson.dumps(answer)
        assert CAROL.encode() not in orjson.dumps(answer)
    answer = await syncing.answer(since, EVERYTHING, BOB, state_after=True)
    assert _left(answer, room_id, "state_after") == ([last.event_id], {"m.room.member": last.content})
    no_members = {"room": {"include_leave": True, "timeline": {"not_types": ["m.room.member"]}}}
    answer = await syncing.answer(since, parse_filter(no_members), BOB)
    assert _left(answer, room_id) == ([], {"m.room.member": last.content})
    archived = await syncing.sync.initial_syncs.of_user(BOB, "B", 100, archived=True)
    assert last.event_id.encode() in archived
    assert b"secret" not in archived


@pytest.mark.parametrize("in_tail", [True, False])
@pytest.mark.parametrize("visibility", ["shared", "joined"])
async def test_a_former_member_is_told_what_they_saw(
    syncing: Syncing, visibility: str, in_tail: bool
) -> None:
    """Who was thrown out could read on by declining an invitation, or would not be told what they saw."""
    room_id = await syncing.create_room(visibility=visibility)
    since = syncing.now()
    await syncing.say(room_id, "seen")
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "seen"})
    await syncing.move(room_id, BOB, "leave", ALICE)
    kicked = syncing.now()
    await syncing.say(room_id, "secret", ALICE)
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "secret"})
    await syncing.put(room_id, ALICE, "m.room.topic", {"topic": "secret"})
    invited = await syncing.move(room_id, BOB, "invite", ALICE)
    last = await syncing.move(room_id, BOB, "leave")
    if not in_tail:
        await syncing.fill_tail()
    for start in (since, None):
        answer = await syncing.answer(start, EVERYTHING, BOB)
        timeline, state = _left(answer, room_id)
        assert timeline == [invited.event_id, last.event_id]
        assert answer["rooms"]["leave"][room_id]["timeline"]["limited"]
        assert state["m.room.name"] == {"name": "seen"}
        assert b"secret" not in orjson.dumps(answer)
        answer = await syncing.answer(start, EVERYTHING, BOB, state_after=True)
        state_after = answer["rooms"]["leave"][room_id]["state_after"]["events"]
        own = [e["event_id"] for e in state_after if e.get("state_key") == BOB]
        assert own == [last.event_id]
        assert b"secret" not in orjson.dumps(answer)
    answer = await syncing.answer(kicked, EVERYTHING, BOB)
    assert _left(answer, room_id) == ([last.event_id], {})
    archived = await syncing.sync.initial_syncs.of_user(BOB, "B", 100, archived=True)
    assert last.event_id.encode() in archived
    assert b"secret" not in archived


async def test_who_is_thrown_out_and_banned_is_told_both(syncing: Syncing) -> None:
    """A client would not show what was said before, nor that the user may not come back."""
    room_id = await syncing.create_room()
    since = syncing.now()
    said = await syncing.say(room_id, "hello")
    kick = await syncing.move(room_id, BOB, "leave", ALICE)
    ban = await syncing.move(room_id, BOB, "ban", ALICE)
    answer = await syncing.answer(since, EVERYTHING, BOB)
    assert _left(answer, room_id) == ([said, kick.event_id, ban.event_id], {})


@pytest.mark.parametrize("in_tail", [True, False])
async def test_who_came_back_is_told_what_changed_and_not_what_was_said(
    syncing: Syncing, in_tail: bool
) -> None:
    """A client would show an old name, or what was said while its user was away."""
    room_id = await syncing.create_room(visibility="joined")
    since = syncing.now()
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "before"})
    await syncing.move(room_id, BOB, "leave")
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "meanwhile"})
    await syncing.say(room_id, "secret", ALICE)
    back = await syncing.move(room_id, BOB, "join")
    for end in ("join", "leave"):
        if end == "leave":
            last = await syncing.move(room_id, BOB, "leave")
        if not in_tail:
            await syncing.fill_tail()
        for start in (since, None):
            answer = await syncing.answer(start, EVERYTHING, BOB)
            assert b"secret" not in orjson.dumps(answer)
            room = answer["rooms"][end][room_id]
            timeline = [event["event_id"] for event in room["timeline"]["events"]]
            assert timeline == [back.event_id, *([last.event_id] if end == "leave" else [])]
            names = [e["content"]["name"] for e in room["state"]["events"] if e["type"] == "m.room.name"]
            assert names == ["meanwhile"]


async def test_two_rooms_that_were_left_are_both_told(syncing: Syncing) -> None:
    """What was said before somebody was thrown out of a busy room would never reach them."""
    rooms = [await syncing.create_room() for _ in range(2)]
    since = syncing.now()
    said = [await syncing.say(room_id, "hello") for room_id in rooms]
    kicks = [await syncing.move(rooms[0], BOB, "leave", ALICE)]
    for number in range(30):
        await syncing.say(rooms[0], str(number), ALICE)
    kicks.append(await syncing.move(rooms[1], BOB, "leave", ALICE))
    assert since.pos < syncing.core.tail.start
    answer = await syncing.answer(since, parse_filter({}), BOB)
    for room_id, event_id, kick in zip(rooms, said, kicks, strict=True):
        assert _left(answer, room_id) == ([event_id, kick.event_id], {})


async def test_every_room_of_a_first_sync_says_who_is_in_it(
    syncing: Syncing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Direct chats would be shown as empty rooms by who is in large ones, too."""
    monkeypatch.setattr(syncing.core.rooms, "_max_state", 5)
    rooms = [await syncing.create_room() for _ in range(4)]
    answer = await syncing.answer(None, parse_filter({}))
    told = answer["rooms"]["join"]
    assert [told[room_id]["summary"]["m.joined_member_count"] for room_id in rooms] == [2] * 4


@pytest.mark.parametrize("in_tail", [True, False])
async def test_a_room_between_two_syncs_is_told_whole(syncing: Syncing, in_tail: bool) -> None:
    """A client would show a room without name and members that its user looked into for a moment."""
    room_id = await syncing.create_room(())
    await syncing.put(room_id, ALICE, "m.room.name", {"name": "whole"})
    since = syncing.now()
    await syncing.move(room_id, BOB, "join")
    await syncing.move(room_id, BOB, "leave")
    if not in_tail:
        await syncing.fill_tail()
    room = (await syncing.answer(since, EVERYTHING, BOB))["rooms"]["leave"][room_id]
    events = [*room["state"]["events"], *room["timeline"]["events"]]
    told = {(event["type"], event["state_key"]) for event in events}
    assert told >= {
        ("m.room.create", ""),
        ("m.room.name", ""),
        ("m.room.member", ALICE),
        ("m.room.member", BOB),
    }
