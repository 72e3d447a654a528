"""Redacting events, by /redact and by /send."""

from __future__ import annotations

import asyncio

import pytest

from ranvier.http.limits import Rate
from ranvier.log.bus import LocalBus
from ranvier.rooms.room import Room
from ranvier.storage.rooms import LoadedRoom
from tests.core import running_core
from tests.room_endpoints import ALICE, BOB, forget_memory, running_endpoints


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
@pytest.mark.parametrize("way", ["redact", "send"])
async def test_a_redacted_message_is_gone(database: str, version: str, way: str) -> None:
    """What somebody took back could still be read; or clients would not know why it is empty."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room(version=version)
        event_id = await app.say(room_id, "secret")
        if way == "redact":
            answer = await app.put(f"{room_id}/redact/{event_id}/t1", body={"reason": "oops"})
        else:
            body = {"redacts": event_id, "reason": "oops"}
            answer = await app.put(f"{room_id}/send/m.room.redaction/t1", body=body)
        redaction_id = answer.json["event_id"]
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            shown = await app.get(f"{room_id}/event/{event_id}")
            assert shown["content"] == {}
            because = shown["unsigned"]["redacted_because"]
            assert because["event_id"] == redaction_id
            assert because["content"]["reason"] == "oops"
            redaction = await app.get(f"{room_id}/event/{redaction_id}")
            # "redacts" is in both places, whatever the room version
            assert redaction["redacts"] == redaction["content"]["redacts"] == event_id
        repeated = await app.put(
            f"{room_id}/redact/{event_id}/t1" if way == "redact" else f"{room_id}/send/m.room.redaction/t1",
            body={"redacts": event_id},
        )
        assert repeated.json["event_id"] == redaction_id
        pdu = (await app.core.events.by_ids([redaction_id]))[redaction_id].event.pdu
        assert ("redacts" in pdu) is (int(version) < 11)


async def test_who_may_redact(database: str) -> None:
    """Anybody could delete what others said; or moderators could not."""
    async with running_endpoints(database) as app:
        room_id, other = await app.core.create_room(), await app.core.create_room()
        for user_id in (BOB, "@admin:example.org"):
            await app.core.join(room_id, user_id)
        by_alice, by_bob = await app.say(room_id, "a"), await app.say(room_id, "b", "bob")
        by_admin = await app.say(room_id, "c", "admin")
        elsewhere = await app.say(other, "elsewhere")
        create_id = (await app.core.rooms.get(room_id)).create.event_id
        suspended = await app.put(f"{room_id}/redact/{by_alice}/t0", "bob/SUSPENDED")
        assert suspended.error == (403, "M_USER_SUSPENDED")
        assert (await app.put(f"{room_id}/redact/{by_alice}/t1", "bob")).error == (403, "M_FORBIDDEN")
        assert (await app.put(f"{room_id}/redact/{by_bob}/t2", "bob/SUSPENDED")).status == 200
        assert (await app.put(f"{room_id}/redact/{by_admin}/t3")).status == 200
        assert (await app.put(f"{room_id}/redact/{by_alice}/t4", "admin")).status == 200
        assert (await app.put(f"{room_id}/redact/{create_id}/t5")).error == (403, "M_FORBIDDEN")
        assert (await app.put(f"{room_id}/redact/{elsewhere}/t6")).error == (404, "M_NOT_FOUND")
        assert (await app.put(f"{room_id}/redact/$nothing/t7")).error == (404, "M_NOT_FOUND")
        assert (await app.put(f"{room_id}/redact/{by_alice}/t8", "carol")).error == (403, "M_FORBIDDEN")
        bad = await app.put(f"{room_id}/send/m.room.redaction/t9", body={"redacts": 5})
        assert bad.error == (400, "M_BAD_JSON")
        assert (await app.put(f"{room_id}/send/m.room.redaction/t9")).error == (400, "M_MISSING_PARAM")
        reason = await app.put(f"{room_id}/redact/{by_alice}/t10", body={"reason": 5})
        assert reason.error == (400, "M_BAD_JSON")


async def test_moderators_redact_by_a_limit_of_their_own(database: str) -> None:
    """A moderator could not clean up after a flood."""
    rates = {"rc_message": Rate(0.001, 1), "rc_admin_redaction": Rate(0.001, 3)}
    async with running_endpoints(database, rates=rates) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        spam = [await app.say(room_id, f"spam {n}", "bob") for n in range(4)]
        answers = [await app.put(f"{room_id}/redact/{event_id}/{event_id[1:6]}") for event_id in spam]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]


async def test_redacted_state_is_not_shown_as_what_was_replaced(database: str) -> None:
    """A name that was taken back for good reason would go on being shown as the room's former name."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        bad = await app.event(room_id, ALICE, "m.room.name", {"name": "insult"}, "")
        good = await app.event(room_id, ALICE, "m.room.name", {"name": "Tea"}, "")
        shown = await app.get(f"{room_id}/event/{good}")
        assert shown["unsigned"]["prev_content"] == {"name": "insult"}
        assert shown["unsigned"]["replaces_state"] == bad
        assert (await app.put(f"{room_id}/redact/{bad}/t1")).status == 200
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            shown = await app.get(f"{room_id}/event/{good}")
            assert shown["unsigned"]["prev_content"] == {}
        assert (await app.put(f"{room_id}/redact/{good}/t2")).status == 200
        assert await app.get(f"{room_id}/state/m.room.name") == {}
        shown = await app.get(f"{room_id}/state/m.room.name", format="event")
        assert shown["unsigned"]["redacted_because"]["type"] == "m.room.redaction"


async def test_a_redaction_reaches_a_room_that_is_being_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would show a name that was taken back for as long as it has the room in memory."""
    bus = LocalBus()
    async with running_core(database, bus=bus) as core, running_core(database, bus=bus) as other:
        room_id = await core.create_room()
        content = {"name": "insult"}
        name = await core.writer.write(
            room_id,
            lambda draft: draft.add(sender=ALICE, type="m.room.name", state_key="", content=content),
        )
        read, is_redacted, load = asyncio.Event(), asyncio.Event(), core.room_store.load

        async def load_slowly(room_id: str) -> LoadedRoom | None:
            loaded = await load(room_id)
            read.set()
            await is_redacted.wait()
            return loaded

        monkeypatch.setattr(core.room_store, "load", load_slowly)
        core.rooms.drop(room_id)
        reading: asyncio.Task[Room] = asyncio.create_task(core.rooms.get(room_id))
        await read.wait()
        await other.writer.write(
            room_id,
            lambda draft: draft.add(sender=ALICE, type="m.room.redaction", content={}, redacts=name),
        )
        is_redacted.set()
        room = await reading
        assert room.state["m.room.name", ""].redacted_because is not None
        assert room.content("m.room.name") == {}
