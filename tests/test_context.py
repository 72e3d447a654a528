"""What happened around an event."""

from __future__ import annotations

from tests.room_endpoints import ALICE, BOB, CAROL, forget_memory, running_endpoints


async def test_around_a_message(database: str) -> None:
    """A link to an old message would open at another place, or scrolling from there would leave a hole."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        ids = [await app.say(room_id, str(n)) for n in range(9)]
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            found = await app.get(f"{room_id}/context/{ids[4]}", limit="5")
            assert found["event"]["event_id"] == ids[4]
            assert [e["content"]["body"] for e in found["events_before"]] == ["3", "2"]
            assert [e["content"]["body"] for e in found["events_after"]] == ["5", "6", "7"]
            older = await app.get(f"{room_id}/messages", dir="b", limit="1", **{"from": found["start"]})
            assert older["chunk"][0]["content"]["body"] == "1"
            newer = await app.get(f"{room_id}/messages", dir="f", limit="1", **{"from": found["end"]})
            assert newer["chunk"][0]["content"]["body"] == "8"
            alone = await app.get(f"{room_id}/context/{ids[4]}", limit="0")
            assert alone["events_before"] == alone["events_after"] == []
            assert alone["event"]["event_id"] == ids[4]
        assert await app.refused(f"{room_id}/context/$nothing") == (404, "M_NOT_FOUND")
        assert await app.refused(f"{room_id}/context/{ids[4]}", "bob") == (404, "M_NOT_FOUND")


async def test_the_state_is_that_of_the_time(database: str) -> None:
    """An old conversation would be shown under today's name with today's members."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        await app.core.join(room_id, BOB)
        await app.event(room_id, ALICE, "m.room.name", {"name": "old"}, "")
        event_id = await app.say(room_id, "then", "bob")
        await app.event(room_id, ALICE, "m.room.name", {"name": "new"}, "")
        await app.core.join(room_id, CAROL)
        for reset in (False, True):
            if reset:
                forget_memory(app.core)
            found = await app.get(f"{room_id}/context/{event_id}", limit="0")
            state = {(e["type"], e["state_key"]): e["content"] for e in found["state"]}
            assert state["m.room.name", ""] == {"name": "old"}
            assert ("m.room.member", CAROL) not in state
            lazy = await app.get(
                f"{room_id}/context/{event_id}", limit="0", filter='{"lazy_load_members":true}'
            )
            assert [e["state_key"] for e in lazy["state"] if e["type"] == "m.room.member"] == [BOB]
            only = await app.get(
                f"{room_id}/context/{event_id}", limit="4", filter='{"types":["m.room.name"]}'
            )
            assert [e["type"] for e in only["state"]] == ["m.room.name"]
            assert [e["content"]["name"] for e in only["events_before"]] == ["old"]
            assert [e["content"]["name"] for e in only["events_after"]] == ["new"]
