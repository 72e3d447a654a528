"""Whether a room is better written elsewhere, and what becomes of who is overtaken."""

from __future__ import annotations

import asyncio

from ranvier.log.bus import LocalBus
from tests.core import Core, running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def bodies(core: Core, room_id: str) -> list[str]:
    rows = core.tail.events_of_room(room_id, 0)
    return [row.content["body"] for row in rows if row.type == "m.room.message"]


async def test_a_room_is_written_where_nobody_else_writes(database: str) -> None:
    """Each message would go through two workers, or two would overtake each other all the time."""
    bus = LocalBus()
    async with running_core(database, bus=bus) as here, running_core(database, bus=bus) as there:
        room_id = await here.create_room()
        await here.join(room_id, BOB)
        await asyncio.sleep(0.1)  # whoever has made a room may do more with it
        await here.send(room_id, ALICE, "here")
        room, elsewhere = await here.rooms.get(room_id), await there.rooms.get(room_id)
        at = elsewhere.extremities[-1].origin_server_ts
        assert not room.is_written_elsewhere(at)
        assert elsewhere.is_written_elsewhere(at + 20)
        assert not elsewhere.is_written_elsewhere(at + 1000), "it is quiet by then"
        event = await there.send(room_id, BOB, "there")
        assert elsewhere.is_written_elsewhere(at + 20), "who wrote before may go on"
        assert not elsewhere.is_written_elsewhere(at + 1000)
        assert await here.tail.wait_for(event.pos)
        assert (await here.rooms.get(room_id)).is_written_elsewhere(event.origin_server_ts)


async def test_who_is_overtaken_goes_on(database: str) -> None:
    """Messages would be lost or doubled when two workers write at once."""
    bus = LocalBus()
    async with running_core(database, bus=bus) as here, running_core(database, bus=bus) as there:
        room_id = await here.create_room()
        await here.join(room_id, BOB)
        for core in (here, there):
            await core.rooms.get(room_id)
        sent = [f"{core is here} {number}" for number in range(40) for core in (here, there)]
        await asyncio.gather(
            *(
                (here if body.startswith("True") else there).send(
                    room_id, ALICE if body.startswith("True") else BOB, body
                )
                for body in sent
            )
        )
        assert await there.tail.wait_for(here.tail.pos)
        assert await here.tail.wait_for(there.tail.pos)
        assert sorted(await bodies(here, room_id)) == sorted(sent)
        assert await bodies(here, room_id) == await bodies(there, room_id)
        # who was overtaken did not have to read the room again
        assert here.rooms.rooms_held == there.rooms.rooms_held == 1
