"""Who types, as several workers see it that hear of each other through a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
import pytest

from ranvier.log.bus import Ephemeral
from ranvier.log.redis_bus import RedisBus
from ranvier.users.typing import TypingUsers
from ranvier.users.typing_rooms import TYPING, WHOLE_LIST, Said, TypingRoom
from ranvier.wire.tokens import Token
from tests.core import Core, running_core
from tests.endpoints import ManualClock
from tests.redis import PrivateRedis, make_bus, private_redis, running_bus, until

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"


@dataclass
class Worker:
    """What one worker knows of typing, and how often its clients were woken for it."""

    bus: RedisBus
    typing: TypingUsers
    woken: int = 0

    def note(self, message: Ephemeral) -> None:
        """Count what wakes clients."""
        self.woken += message.kind == TYPING


@dataclass
class Scene:
    """Workers, a room that Alice, Bob and Carol are in, and a clock that the test sets."""

    core: Core
    redis: PrivateRedis
    clock: ManualClock
    stack: AsyncExitStack
    room_id: str
    workers: list[Worker]

    async def start_worker(self) -> Worker:
        """Start another worker."""
        bus = make_bus(self.redis.config)
        typing = TypingUsers(
            bus=bus, tail=self.core.tail, memberships=self.core.memberships, clock=self.clock
        )
        worker = Worker(bus, typing)
        bus.listen(ephemerals=worker.note)
        await self.stack.enter_async_context(running_bus(bus))
        self.workers.append(worker)
        return worker

    async def say(self, worker: int, user_id: str, timeout_ms: int) -> None:
        """Say at a worker that a user types; for 0 ms: that they stopped."""
        await self.workers[worker].typing.set(user_id, self.room_id, timeout_ms > 0, timeout_ms)

    async def seen(self) -> list[set[str]]:
        """Give who types as each worker sees it once all of them have heard everything."""
        newest = max(worker.bus.ephemeral_now()[0] for worker in self.workers)
        await until(lambda: all(worker.bus.ephemeral_now()[0] >= newest for worker in self.workers))
        return [
            set(typists.user_ids if (typists := worker.typing.of(self.room_id)) else ())
            for worker in self.workers
        ]

    async def later(self, seconds: float) -> None:
        """Let time pass, for each worker."""
        self.clock.forward(seconds)
        for worker in self.workers:
            await self.seen()
            await worker.typing.expire()


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    """Run three workers."""
    async with (
        private_redis() as redis,
        running_core(database) as core,
        AsyncExitStack() as stack,
    ):
        room_id = await core.create_room()
        for user_id in (BOB, CAROL):
            await core.join(room_id, user_id)
        made = Scene(core, redis, ManualClock(), stack, room_id, [])
        for _ in range(3):
            await made.start_worker()
        yield made


async def test_who_goes_on_at_another_worker_goes_on(scene: Scene) -> None:
    """Whose client has two connections would be seen to stop in the middle of a sentence."""
    await scene.say(0, ALICE, 30_000)
    await scene.seen()
    await scene.later(20)
    await scene.say(1, ALICE, 30_000)
    await scene.later(11)
    assert await scene.seen() == [{ALICE}] * 3
    await scene.later(20)
    assert await scene.seen() == [set()] * 3


async def test_those_who_begin_and_stop_at_once_are_all_seen(scene: Scene) -> None:
    """Of two who begin at once one would not be seen; of two who stop one would go on for minutes."""
    for _ in range(20):
        for timeout_ms, expected in ((30_000, {ALICE, BOB, CAROL}), (0, set[str]())):
            async with asyncio.TaskGroup() as tasks:
                for worker, user_id in enumerate((ALICE, BOB, CAROL)):
                    tasks.create_task(scene.say(worker, user_id, timeout_ms))
            assert await scene.seen() == [expected] * 3


async def test_typing_through_a_worker_that_is_gone_ends_in_time(scene: Scene) -> None:
    """After a worker died somebody would seem to type for as long as anybody else in the room does."""
    await scene.say(0, ALICE, 30_000)
    await scene.seen()
    scene.workers.pop(0)
    for _ in range(3):
        await scene.later(9)
        await scene.say(0, BOB, 0)
        await scene.say(0, BOB, 60_000)
    assert await scene.seen() == [{ALICE, BOB}] * 2
    await scene.later(12)
    assert await scene.seen() == [{BOB}] * 2


async def test_who_writes_for_long_is_seen_all_the_time_and_wakes_few(scene: Scene) -> None:
    """Who writes for more than two minutes would be seen to stop; or each reminder would wake the room."""
    await scene.say(0, ALICE, 30_000)
    for _ in range(40):
        await scene.later(10)
        await scene.say(0, ALICE, 30_000)
        assert await scene.seen() == [{ALICE}] * 3
    assert all(worker.woken <= 20 for worker in scene.workers)
    await scene.later(29)
    assert await scene.seen() == [{ALICE}] * 3
    await scene.later(2)
    assert await scene.seen() == [set()] * 3


async def test_a_worker_that_starts_knows_who_types_and_until_when(scene: Scene) -> None:
    """After the update of a worker its users would not see who writes, or see them for ever."""
    await scene.say(0, ALICE, 60_000)
    await scene.say(1, BOB, 30_000)
    await scene.seen()
    await scene.later(25)
    await scene.say(1, BOB, 30_000)
    await scene.later(6)
    await scene.start_worker()
    assert (await scene.seen())[3] == {ALICE, BOB}
    # The others are gone: what is to be told is for the new one to tell.
    del scene.workers[:3]
    await scene.later(32)
    assert await scene.seen() == [{ALICE}]
    await scene.later(36)
    assert await scene.seen() == [set()]


async def test_redis_that_begins_anew_brings_nobody_back(scene: Scene) -> None:
    """After a loss of Redis people would type who do not, or none be seen that do."""
    await scene.say(0, ALICE, 30_000)
    await scene.say(1, BOB, 30_000)
    await scene.seen()
    await scene.redis.ask("FLUSHALL")
    await scene.workers[2].bus.publish_ephemeral("presence", BOB, b"{}")  # the first of a new count
    await until(lambda: len({worker.bus.ephemeral_now() for worker in scene.workers}) == 1)
    assert await scene.seen() == [set()] * 3
    await scene.say(1, BOB, 30_000)
    assert await scene.seen() == [{BOB}] * 3
    await scene.later(31)
    assert await scene.seen() == [set()] * 3


async def test_clients_that_saw_somebody_at_an_earlier_release_are_told(scene: Scene) -> None:
    """In an update without a pause somebody would go on typing who stopped at a worker not updated yet."""
    bus, typing = scene.workers[0].bus, scene.workers[0].typing
    await bus.publish_ephemeral(WHOLE_LIST, scene.room_id, b'["@alice:example.org"]')
    since = Token(0, *bus.ephemeral_now())
    assert typing.changed(since, since) == []
    await bus.publish_ephemeral(WHOLE_LIST, scene.room_id, b"[]")
    assert typing.changed(since, Token(0, *bus.ephemeral_now())) == [scene.room_id]
    typists = typing.of(scene.room_id)
    assert typists is not None
    assert typists.body == b"[]"


def hear(room: TypingRoom, message: bytes, count: int, now: float = 0.0) -> set[str]:
    """Let a room hear a message, and give who types then."""
    room.hear(msgspec.json.decode(message, type=Said), count, now)
    return set(room.typists)


def test_what_was_found_before_something_newer_does_not_count() -> None:
    """Who goes on in the moment in which their time is over at another worker would be seen to stop."""
    one, two, three = TypingRoom(), TypingRoom(), TypingRoom()
    begun = one.message("one", ALICE, 30.0, 0.0)
    for room in (one, two, three):
        assert hear(room, begun, 1) == {ALICE}
    timed_out = one.message("one", ALICE, None, 30.0, seen=one.typists[ALICE].at)
    renewed = two.message("two", ALICE, 60.0, 30.0)
    for room in (one, two, three):
        hear(room, renewed, 2, 30.0)
        assert hear(room, timed_out, 3, 30.0) == {ALICE}
    # And the other way round: who said themselves that they stopped is not brought back.
    longer = two.message("two", ALICE, 90.0, 60.0, seen=two.typists[ALICE].at)
    stopped = one.message("one", ALICE, None, 60.0)
    for room in (one, two, three):
        hear(room, stopped, 4, 60.0)
        assert hear(room, longer, 5, 60.0) == set()


def test_who_missed_something_takes_it_from_the_next_message() -> None:
    """After a short loss of Redis a worker would show for long who does not type any more."""
    one, away = TypingRoom(), TypingRoom()
    for room in (one, away):
        hear(room, TypingRoom().message("one", ALICE, 30.0, 0.0), 1)
    hear(one, one.message("two", ALICE, None, 0.0), 2)
    hear(one, one.message("two", BOB, 30.0, 0.0), 3)
    last = one.message("two", CAROL, 30.0, 0.0)
    assert hear(one, last, 4) == hear(away, last, 4) == {BOB, CAROL}
    assert away.shown.at == 4
