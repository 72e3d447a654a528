"""Whether a process knows that it stood still, and what came meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from ranvier.cluster.link import LinkServer
from ranvier.log.bus import LocalBus
from ranvier.log.clock import asked_s, note_asked, steady_s
from ranvier.log.standstill import Standstill
from ranvier.rooms.append_event import Action
from ranvier.spec.errors import MatrixError
from ranvier.storage.account_data import AccountDataStore
from ranvier.users.account_data import AccountData
from ranvier.wire.log_rows import Batch, EventRow
from tests.core import Core, running_core

ALICE = "@alice:example.org"


class Now:
    """A clock that can be put forward, and a log that is followed."""

    def __init__(self) -> None:
        self.forward_s = 0.0
        self.pos = 0

    def clock(self) -> float:
        """Give the time, as if this process had stood still."""
        return steady_s() + self.forward_s


def test_what_was_asked_for_before_a_standstill_is_told_from_what_came_after() -> None:
    """What waited in a frozen worker would undo what is newer; or whoever comes later would be refused."""
    now = Now()
    standstill = Standstill(lambda: now.pos, now.clock)
    before = now.clock()
    now.pos = 7
    standstill.look()
    assert standstill.pos_before(before) is None
    now.forward_s, now.pos = 10.0, 9
    standstill.look()
    read = now.clock()  # perhaps it has lain in a socket
    now.forward_s = 11.0
    between = now.clock()
    now.forward_s, now.pos = 20.0, 12
    standstill.look()
    now.forward_s = 21.0
    assert [standstill.pos_before(it) for it in (before, read, between, now.clock())] == [7, 7, 9, None]


async def test_a_suspended_machine_stood_still() -> None:
    """A laptop that wakes up would do what others did in its place, an hour late."""
    assert abs(steady_s() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1.0
    assert Standstill(int)._clock is steady_s

    async def answer(body: bytes) -> bytes:
        return body

    assert LinkServer(secret="", answer=answer, greet=lambda value: None).clock is steady_s


async def test_what_a_task_does_was_asked_for_when_its_request_came() -> None:
    """What a request waited for before it wrote would count for nothing."""
    before = asked_s()

    async def request() -> float:
        note_asked(5.0)
        return await asyncio.create_task(part())

    async def part() -> float:
        return asked_s()

    assert await asyncio.create_task(request()) < before
    assert asked_s() >= before


class HeldBus(LocalBus):
    """Have whoever commits wait before anybody is told, as if its process stood still there."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def publish(self, batch: Batch) -> None:
        """Tell of a commit once the process goes on."""
        self.reached.set()
        await self.goes_on.wait()
        await super().publish(batch)


def topic(text: str) -> Action[EventRow]:
    """Set a topic."""
    content = {"topic": text}
    return lambda draft: draft.add(sender=ALICE, type="m.room.topic", state_key="", content=content)


def say(text: str) -> Action[EventRow]:
    """Say something."""
    return lambda draft: draft.add(sender=ALICE, type="m.room.message", content={"body": text})


async def topics(core: Core, room_id: str) -> list[object]:
    """Give the topics that a room had, in order."""
    room = await core.rooms.get(room_id)
    timeline = await core.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=100)
    return [row.content["topic"] for row in timeline if row.type == "m.room.topic"]


@pytest.mark.parametrize("overtaken", [True, False])
async def test_what_waits_in_a_frozen_worker_is_not_done_on_top_of_what_is_newer(
    database: str, overtaken: bool
) -> None:
    """A topic (or a ban) would come back that was replaced since; or be refused though nobody else wrote."""
    bus, now = HeldBus(), Now()
    async with running_core(database, bus=bus) as frozen, running_core(database) as other:
        room_id = await frozen.create_room()
        standstill = frozen.writer.standstill = Standstill(lambda: frozen.tail.pos, now.clock)
        bus.goes_on.clear()
        bus.reached.clear()
        before = asyncio.create_task(frozen.writer.write(room_id, say("before")))
        await bus.reached.wait()
        waiting = asyncio.create_task(frozen.writer.write(room_id, topic("older")))
        await asyncio.sleep(0)  # now it is in the room's queue
        if overtaken:
            newest = await other.writer.write(room_id, topic("newer"))
            frozen.follower.hurry()
            assert await frozen.tail.wait_for(newest.pos, 10)
        now.forward_s = 10.0
        bus.goes_on.set()
        await before
        if overtaken:
            with pytest.raises(MatrixError) as refused:
                await waiting
            assert refused.value.status == 503
        else:
            await waiting
        assert standstill.pos_before(now.clock() - 10) is not None
        assert await topics(frozen, room_id) == ["newer" if overtaken else "older"]


async def test_rows_that_wait_in_a_frozen_worker_do_not_replace_what_is_newer(database: str) -> None:
    """Which chats are direct ones, or a name, would go back to what was replaced by another worker since."""
    bus, now = HeldBus(), Now()
    async with running_core(database, bus=bus) as frozen, running_core(database) as other:
        frozen.appender.standstill = Standstill(lambda: frozen.tail.pos, now.clock)
        late, in_time = (
            AccountData(store=AccountDataStore(core.database), appender=core.appender, tail=core.tail)
            for core in (frozen, other)
        )
        bus.goes_on.clear()
        before = asyncio.create_task(late.set(ALICE, "m.before", {}))
        await bus.reached.wait()
        waiting = asyncio.create_task(late.set(ALICE, "m.direct", {"older": []}))
        while not frozen.appender.queued:
            await asyncio.sleep(0.001)
        await in_time.set(ALICE, "m.direct", {"newer": []})
        now.forward_s = 10.0
        bus.goes_on.set()
        await before
        with pytest.raises(MatrixError) as refused:
            await waiting
        assert refused.value.status == 503
        assert await in_time.content(ALICE, "m.direct") == {"newer": []}


async def test_a_request_that_a_worker_froze_with_before_it_wrote_is_as_late(database: str) -> None:
    """The same, if the worker stood still while the request waited for something else."""
    now = Now()
    async with running_core(database) as frozen, running_core(database) as other:
        room_id = await frozen.create_room()
        frozen.writer.standstill = Standstill(lambda: frozen.tail.pos, now.clock)

        async def request() -> None:
            note_asked()
            newest = await other.writer.write(room_id, topic("newer"))
            frozen.follower.hurry()
            assert await frozen.tail.wait_for(newest.pos, 10)
            now.forward_s = 10.0
            frozen.writer.standstill.look()
            now.forward_s = 0.0
            await frozen.writer.write(room_id, topic("older"))

        with pytest.raises(MatrixError) as refused:
            await asyncio.create_task(request())
        assert refused.value.status == 503
        assert await topics(frozen, room_id) == ["newer"]
