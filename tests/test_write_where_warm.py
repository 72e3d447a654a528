"""Whether a room is better written elsewhere, and what becomes of who is overtaken."""

from __future__ import annotations

import asyncio
import time

from ranvier.log.bus import LocalBus
from tests.core import Core, running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def bodies(core: Core, room_id: str) -> list[str]:
    rows = core.tail.events_of_room(room_id, 0)
    return [row.content["body"] for row in rows if row.type == "m.room.message"]


async def test_a_room_is_written_where_nobody_else_writes(database: str) -> None:
    """Each message would go through two workers, or two would overtake each other all the time."""
    bus = LocalBus()
    async with running_core(database, bus=bus) as here, running_core(database, bus=bus) as there:
        room_id = await here.create_room()
        await here.join(room_id, BOB)
        await here.send(room_id, ALICE, "here")
        assert not (await here.rooms.get(room_id)).is_written_elsewhere(now_ms())
        elsewhere = await there.rooms.get(room_id)
        assert elsewhere.is_written_elsewhere(now_ms())
        assert not elsewhere.is_written_elsewhere(now_ms() + 5000), "it is quiet by then"
        event = await there.send(room_id, BOB, "there")
        assert not elsewhere.is_written_elsewhere(now_ms())
        assert await here.tail.wait_for(event.pos)
        assert (await here.rooms.get(room_id)).is_written_elsewhere(now_ms())


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
