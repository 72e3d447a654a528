"""One event by its id, and the forms in which events are shown."""

from __future__ import annotations

import orjson

from ranvier.spec.filters import parse_filter
from tests.room_endpoints import ALICE, BOB, forget_memory, running_endpoints


async def test_an_event_by_its_id(database: str) -> None:
    """A link to a message would not open, or one into a foreign room would."""
    async with running_endpoints(database) as app:
        room_id, other = await app.core.create_room(), await app.core.create_room("@bob:example.org")
        event_id = await app.say(room_id, "here")
        elsewhere = await app.say(other, "there", "bob")
        event = await app.get(f"{room_id}/event/{event_id}")
        assert event["content"] == {"msgtype": "m.text", "body": "here"}
        assert (event["event_id"], event["room_id"], event["sender"]) == (event_id, room_id, ALICE)
        assert set(event) == {
            "content",
            "event_id",
            "origin_server_ts",
            "room_id",
            "sender",
            "type",
            "unsigned",
        }
        missing = (404, "M_NOT_FOUND")
        for path, user in (
            (f"{room_id}/event/$nothing", "alice"),
            (f"{room_id}/event/{elsewhere}", "alice"),
            (f"{other}/event/{elsewhere}", "alice"),
            (f"!nowhere:example.org/event/{event_id}", "alice"),
            (f"{room_id}/event/{event_id}", "bob"),
        ):
            assert await app.refused(path, user) == missing
        assert await app.refused(f"{room_id}/event/a%00b") == (400, "M_INVALID_PARAM")


async def test_what_was_there_before(database: str) -> None:
    """A timeline could not say "changed the name from … to …"."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        first = await app.event(room_id, ALICE, "m.room.name", {"name": "one"}, "")
        second = await app.event(room_id, ALICE, "m.room.name", {"name": "two"}, "")
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            unsigned = (await app.get(f"{room_id}/event/{second}", "bob"))["unsigned"]
            assert unsigned["replaces_state"] == first
            assert unsigned["prev_content"] == {"name": "one"}
            assert "prev_content" not in (await app.get(f"{room_id}/event/{first}", "bob"))["unsigned"]


async def test_what_was_there_before_is_kept_from_who_may_not_know(database: str) -> None:
    """Somebody who was not in the room would read its former names in the first event that they see."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.visibility(room_id, "joined")
        secret = await app.event(room_id, ALICE, "m.room.topic", {"topic": "secret"}, "")
        await app.visibility(room_id, "world_readable")
        open_ = await app.event(room_id, ALICE, "m.room.topic", {"topic": "open"}, "")
        unsigned = (await app.get(f"{room_id}/event/{open_}", "carol"))["unsigned"]
        assert unsigned["replaces_state"] == secret
        assert "prev_content" not in unsigned
        assert unsigned["membership"] == "leave"
        assert (await app.get(f"{room_id}/event/{open_}"))["unsigned"]["prev_content"] == {"topic": "secret"}


async def test_fields_and_federation_format(database: str) -> None:
    """A client that asks for a few fields would get everything, and one that checks signatures none."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        event_id = await app.say(room_id, "hi")
        row = app.core.tail.event(event_id)
        assert row is not None
        fields = parse_filter({"event_fields": ["content.body", "sender"]})
        rendering = await app.renderer.prepare([row], user_id=ALICE, filter=fields)
        assert orjson.loads(rendering.event(row)) == {"content": {"body": "hi"}, "sender": ALICE}
        federation = parse_filter({"event_format": "federation"})
        rendering = await app.renderer.prepare([row], user_id=ALICE, filter=federation)
        shown = orjson.loads(rendering.event(row))
        assert shown["signatures"] == row.event.pdu["signatures"]
        assert shown["unsigned"]["membership"] == "join"


async def test_in_a_sync_events_name_no_room(database: str) -> None:
    """Every event of a sync would carry the room's id a second time."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        await app.event(room_id, ALICE, "m.room.name", {"name": "one"}, "")
        await app.event(room_id, ALICE, "m.room.name", {"name": "two"}, "")
        rows = app.core.tail.events_of_room(room_id, 0)
        rendering = await app.renderer.prepare(rows, user_id=BOB, from_tail=True, with_room_id=False)
        shown = [orjson.loads(rendering.event(row)) for row in rows]
        assert not any("room_id" in event for event in shown)
        # what came before the user's own member event is not known without asking the database
        assert [event["unsigned"].get("membership") for event in shown] == [None] * 4 + ["join"] * 3
        assert shown[-1]["unsigned"]["prev_content"] == {"name": "one"}
