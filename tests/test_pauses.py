"""Two processes that write into one room all the time: neither is overtaken for ever."""

from __future__ import annotations

import asyncio

from ranvier.log.bus import BatchListener, LocalBus
from ranvier.rooms.pauses import RoomPauses
from ranvier.wire.log_rows import Batch
from tests.core import Core, running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


class _Wire(LocalBus):
    """A bus on which others hear of a commit some milliseconds later, as they do by way of Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[_Wire] = []

    async def publish(self, batch: Batch) -> None:
        await super().publish(batch)
        for other in self.others:
            for listener in other._batch_listeners:
                asyncio.get_running_loop().call_later(0.005, _tell, listener, batch)


def _tell(listener: BatchListener, batch: Batch) -> None:
    listener(batch)


async def _room_of_two(here: Core, there: Core) -> str:
    room_id = await here.create_room()
    await here.join(room_id, BOB)
    assert await there.tail.wait_for(here.tail.pos)
    for core in (here, there):
        await core.rooms.get(room_id)
    return room_id


async def test_who_is_overtaken_twice_goes_first(database: str) -> None:
    """Some people's messages would be refused with 503 in a room in which many write at once."""
    bus, wire = _Wire(), _Wire()
    bus.others, wire.others = [wire], [bus]
    async with (
        running_core(database, bus=bus) as here,
        running_core(database, bus=wire) as there,
        asyncio.TaskGroup() as tasks,
    ):
        room_id = await _room_of_two(here, there)
        there.writer.go_first = RoomPauses(writer=here.writer, tail=here.tail, tasks=tasks).begin
        done = asyncio.Event()

        async def talk() -> int:
            for number in range(2000):
                await here.send(room_id, ALICE, f"here {number}")
                if done.is_set():
                    return number
            return 2000

        talking = [asyncio.create_task(talk()) for _ in range(4)]
        answers = await asyncio.gather(
            *(there.send(room_id, BOB, f"there {number}") for number in range(10)), return_exceptions=True
        )
        done.set()
        assert max(await asyncio.gather(*talking)) < 2000, "nobody was there to overtake"
        assert [it for it in answers if isinstance(it, Exception)] == []
        rows = there.tail.events_of_room(room_id, 0)
        told = [row.content["body"] for row in rows if row.sender == BOB and row.type == "m.room.message"]
        assert told == [f"there {number}" for number in range(10)]


async def test_nothing_is_written_in_a_pause_and_it_ends(database: str) -> None:
    """A room would stay silent after a worker that asked for it died; or the pause would be none."""
    bus = LocalBus()
    async with (
        running_core(database, bus=bus) as here,
        running_core(database, bus=bus) as there,
        asyncio.TaskGroup() as tasks,
    ):
        room_id = await _room_of_two(here, there)
        pauses = RoomPauses(writer=here.writer, tail=here.tail, tasks=tasks)
        assert await pauses.begin(room_id) == here.tail.pos
        waiting = asyncio.create_task(here.send(room_id, ALICE, "second"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        first = await there.send(room_id, BOB, "first")
        assert (await waiting).pos == first.pos + 1
        # nobody writes now: it ends by itself
        await pauses.begin(room_id)
        async with asyncio.timeout(5):
            await here.send(room_id, ALICE, "third")


async def test_who_asked_for_a_pause_may_go_away(database: str) -> None:
    """A worker would end because another one did."""
    async with running_core(database) as core, asyncio.TaskGroup() as tasks:
        room_id = await core.create_room()
        pauses = RoomPauses(writer=core.writer, tail=core.tail, tasks=tasks)
        await pauses.begin(room_id)
        second = asyncio.create_task(pauses.begin(room_id))
        await asyncio.sleep(0.05)
        second.cancel()
        async with asyncio.timeout(5):
            await core.send(room_id, ALICE, "after both")
