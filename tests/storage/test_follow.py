"""Following the log over a bus that loses, repeats and reorders messages, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from ranvier.log.bus import LocalBus
from ranvier.log.follow import Follower
from ranvier.log.tail import Tail
from ranvier.storage.database import Connection, Database, DatabaseUnavailable
from ranvier.storage.log import head
from ranvier.wire.log_rows import Batch, EventRow, LogRow, Row
from tests.core import running_core
from tests.endpoints import background

ALICE = "@alice:example.org"


class RecordingBus(LocalBus):
    """Deliver, and keep what was delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    async def publish(self, batch: Batch) -> None:
        """Tell everybody of a committed batch."""
        self.batches.append(batch)
        await super().publish(batch)


class LossyBus(LocalBus):
    """Lose, repeat and hold back messages by chance, each listener's by itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._held: list[Batch] = []

    async def publish(self, batch: Batch) -> None:
        """Tell some of a committed batch, and of older ones."""
        self._held.append(batch)
        self._random.shuffle(self._held)
        for listener in self._batch_listeners:
            for held in self._held:
                if self._random.random() < 0.5:
                    listener(held)
        del self._held[3:]


class Unreliable(Database):
    """A database that can be made unreachable."""

    reachable = True
    asked = 0

    def __init__(self, dsn: str) -> None:
        super().__init__({"dsn": dsn}, size=2)
        self.failed = asyncio.Semaphore(0)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, or fail."""
        self.asked += 1
        if not self.reachable:
            self.failed.release()
            raise DatabaseUnavailable
        async with super().connection() as connection:
            yield connection


def names(rows: Sequence[Row]) -> list[tuple[int, str | None]]:
    """Tell rows from each other, be they made by a writer or read from the database."""
    return [(r.pos, r.event_id if isinstance(r, EventRow) else r.key) for r in rows]


async def write_log(dsn: str, count: int) -> list[Batch]:
    """Write a log of several batches of events and other rows, and give the batches."""
    bus = RecordingBus()
    async with running_core(dsn, bus=bus) as core:
        room_id = await core.create_room()
        for n in range(count):
            if n % 3:
                await core.send(room_id, ALICE, str(n))
            else:
                rows = [
                    LogRow(kind="account_data", user_id=ALICE, key=f"t{n}.{m}", body=b"{}")
                    for m in range(n % 4)
                ]
                await core.appender.append_rows(
                    rows or [LogRow(kind="device_list", user_id=ALICE, key=str(n))]
                )
    return bus.batches


@asynccontextmanager
async def follower(
    dsn: str, *, heartbeat_s: float = 30.0, start: int = 0
) -> AsyncIterator[tuple[Follower, Tail, LocalBus, Unreliable, list[Row]]]:
    """Make a follower that stands at a position; it does not run yet."""
    database, bus, tail, heard = Unreliable(dsn), LocalBus(), Tail(), list[Row]()
    tail.listen(heard.extend)
    made = Follower(database=database, bus=bus, tail=tail, heartbeat_s=heartbeat_s)
    tail.reset(start)
    try:
        yield made, tail, bus, database, heard
    finally:
        await database.close()


async def test_any_disorder_of_messages_gives_the_log(database: str) -> None:
    """With several workers, somebody would miss messages, get them twice or in another order."""
    batches = await write_log(database, 24)
    expected = names([row for batch in batches for row in batch.rows])
    last = batches[-1].last
    for seed in range(60):
        choose = random.Random(seed)
        async with follower(database, heartbeat_s=0.05) as (made, tail, bus, _, heard):
            messages = [batch for batch in batches for _ in range(choose.choice([0, 1, 1, 1, 2, 3]))]
            for _ in range(choose.randrange(30) if messages else 0):
                one, two = choose.randrange(len(messages)), choose.randrange(len(messages))
                messages[one], messages[two] = messages[two], messages[one]
            async with background(made.run()):
                for message in messages:
                    await bus.publish(message)
                    if choose.random() < 0.2:
                        await asyncio.sleep(choose.choice([0, 0.001]))
                    assert all(two[0] == one[0] + 1 for one, two in pairwise(names(heard))), seed
                assert await tail.wait_for(last, 10), seed
            assert names(heard) == expected, seed
            assert names(tail.rows_since(0)) == expected, seed
            assert not made._early, seed


async def test_a_commit_that_came_early_is_kept(database: str) -> None:
    """On another worker a message would be seen seconds later, since the one before it was very large."""
    one, two = (await write_log(database, 6))[-2:]
    async with follower(database) as (made, tail, bus, _, heard), background(made.run()):
        await bus.publish(two)
        await bus.publish(Batch(one.last, one.last, []))
        assert await tail.wait_for(two.last, 10)
        assert names(heard)[-len(two.rows) :] == names(two.rows)


async def test_messages_that_overtake_each_other_cost_no_query(database: str) -> None:
    """Each time that two workers write at once, all others would ask the database."""
    batches = await write_log(database, 12)
    async with follower(database) as (made, tail, bus, asked, heard):
        for one, two in zip(batches[::2], batches[1::2], strict=False):
            await bus.publish(two)
            await bus.publish(one)
        for batch in reversed(batches[len(batches) // 2 * 2 :]):
            await bus.publish(batch)
        assert tail.pos == batches[-1].last
        assert names(heard) == names([row for batch in batches for row in batch.rows])
        assert asked.asked == 0
        assert not made._early


async def test_many_messages_before_the_first_are_taken_in_one_go(database: str) -> None:
    """When the first of many messages comes last, the worker would stop with an error."""
    batches = await write_log(database, 12)
    async with follower(database) as (_, tail, bus, asked, heard):
        for batch in reversed(batches):
            await bus.publish(batch)
        assert tail.pos == batches[-1].last
        assert len(heard) == batches[-1].last
        assert asked.asked == 0


async def test_the_heartbeat_finds_what_no_message_told(database: str) -> None:
    """When Redis is gone, or lost a message, nobody would hear anything until the next one."""
    batches = await write_log(database, 6)
    async with follower(database, heartbeat_s=0.02) as (made, tail, _, _, heard):
        async with background(made.run()):
            assert await tail.wait_for(batches[-1].last, 10)
        assert names(heard) == names([row for batch in batches for row in batch.rows])


async def test_what_the_bus_may_be_about_to_bring_is_left_to_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In quiet hours idle workers would read each message from the database, and forget its room with it."""
    batches = await write_log(database, 6)
    async with follower(database, heartbeat_s=0.5) as (made, tail, bus, asked, _):

        async def fail(head: int) -> None:
            raise AssertionError(f"rows up to {head} were read from the database")

        monkeypatch.setattr(made, "_read_upto", fail)
        async with background(made.run()):
            async with asyncio.timeout(10):
                while made.behind == 0:
                    await asyncio.sleep(0)
            assert asked.asked
            for batch in batches:
                await bus.publish(batch)
            assert tail.pos == batches[-1].last


async def test_who_waits_for_a_position_has_the_log_read_at_once(database: str) -> None:
    """A request whose worker has missed a message would wait for seconds."""
    batches = await write_log(database, 6)
    async with follower(database) as (made, tail, _, _, _), background(made.run()):
        made.hurry()
        assert await tail.wait_for(batches[-1].last, 10)


async def test_without_a_bus_nothing_is_left_to_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis each message would come to the other workers after two looks at the log, not one."""
    monkeypatch.setattr("ranvier.log.follow._POLL_S", 0.02)
    batches = await write_log(database, 6)
    async with follower(database) as (made, tail, bus, asked, _):
        bus.connected = False
        async with background(made.run()):
            assert await tail.wait_for(batches[-1].last, 10)
            assert asked.asked == 2, "the head, and what is before it"


async def test_a_start_reads_the_newest_rows_and_no_more(database: str) -> None:
    """After a restart every client that comes back would be answered from the database; or it took hours."""
    batches = await write_log(database, 12)
    last = batches[-1].last
    async with follower(database) as (_, tail, bus, asked, _):
        short = Follower(database=asked, bus=bus, tail=tail, warm_rows=5)
        await short.start()
        assert (tail.start, tail.pos, len(tail)) == (last - 5, last, 5)


async def test_messages_while_the_gap_is_read_are_not_lost_or_doubled(database: str) -> None:
    """What is said while a worker catches up would be missing, or come twice."""
    batches = await write_log(database, 24)
    async with follower(database) as (made, tail, bus, asked, heard):
        reading = asyncio.create_task(made._read_upto(batches[14].last))
        while not asked.asked:
            await asyncio.sleep(0)
        for batch in (*batches[:3], *batches[10:20]):
            await bus.publish(batch)
        await reading
        async with background(made.run()):
            await bus.publish(batches[-1])
            assert await tail.wait_for(batches[-1].last, 10)
        assert names(heard) == names([row for batch in batches for row in batch.rows])


async def test_following_goes_on_when_the_database_is_back(database: str) -> None:
    """After a restart of PostgreSQL a worker would tell its clients nothing any more."""
    batches = await write_log(database, 12)
    async with follower(database, heartbeat_s=0.02) as (made, tail, bus, asked, heard):
        asked.reachable = False
        async with background(made.run()):
            for batch in batches[2:]:
                await bus.publish(batch)
            for _ in range(3):
                await asyncio.wait_for(asked.failed.acquire(), 10)
            assert tail.pos == 0
            asked.reachable = True
            assert await tail.wait_for(batches[-1].last, 10)
        assert names(heard) == names([row for batch in batches for row in batch.rows])


async def test_messages_that_can_not_be_used_yet_are_bounded(database: str) -> None:
    """A worker that can not reach the database would fill its memory with messages."""
    async with follower(database) as (made, _, bus, _, _):
        for n in range(1, 5000):
            await bus.publish(Batch(n, n + 1, [LogRow(kind="k", pos=n + 1)]))
        assert len(made._early) <= 1000


@pytest.mark.parametrize("seed", range(3))
async def test_workers_on_a_lossy_bus_see_one_log(database: str, seed: int) -> None:
    """With Redis in trouble, the same room would look different depending on the worker."""
    bus = LossyBus(seed)
    async with running_core(database, bus=bus) as one, running_core(database, bus=bus) as two:
        room_id = await one.create_room()
        async with asyncio.TaskGroup() as tasks:
            for n in range(30):
                core = one if n % 2 else two
                tasks.create_task(core.send(room_id, ALICE, str(n)))
                tasks.create_task(
                    core.appender.append_rows([LogRow(kind="device_list", user_id=ALICE, key=str(n))])
                )
        last = await head(one.database)
        for core in (one, two):
            assert await core.tail.wait_for(last, 10)
        rows = names(one.tail.rows_since(0))
        assert [pos for pos, _ in rows] == list(range(1, last + 1))
        assert names(two.tail.rows_since(0)) == rows
        assert {row.event_id for row in one.tail.events_of_room(room_id, 0)} == {
            row.event_id
            for row in await one.events.forwards(
                (await one.rooms.get(room_id)).room_nid, after=0, upto=last, limit=100
            )
        }
