"""The bus over a real Redis: at once, in order, and whatever happens to Redis."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ranvier.cluster.rate_limits import SharedCounts
from ranvier.config.database import RedisConfig
from ranvier.http.limits import Rate, RateLimiter
from ranvier.log.bus import RESET, Ephemeral
from ranvier.log.redis_bus import RedisBus
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable
from ranvier.spec.errors import MatrixError
from ranvier.storage.log import head
from ranvier.wire.log_messages import decode_batch, decode_header, encode_batch
from ranvier.wire.log_rows import Batch, EventRow, LogRow
from tests.cluster.services import tcp_port_of
from tests.core import Core, running_core
from tests.redis import PrivateRedis, make_bus, private_redis, running_bus, until
from tests.server.test_listeners_whole import make_certificate

ALICE = "@alice:example.org"

_SHOWN = [
    name
    for name in EventRow.__struct_fields__
    if not name.startswith("known_") and name != "redacted_because"
]


@pytest.fixture
async def redis() -> AsyncIterator[PrivateRedis]:
    """Give a Redis of the test's own."""
    async with private_redis() as made:
        yield made


@asynccontextmanager
async def worker(dsn: str, redis: PrivateRedis, bus: RedisBus | None = None) -> AsyncIterator[Core]:
    """Run a core as one of several processes."""
    bus = bus if bus is not None else make_bus(redis.config)
    async with running_core(dsn, bus=bus, size=3) as core, running_bus(bus):
        assert bus.connected
        yield core


def never_asks(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the test fail if the follower reads rows from the database."""

    async def fail(head: int) -> None:
        raise AssertionError(f"rows up to {head} were read from the database")

    monkeypatch.setattr(core.follower, "_read_upto", fail)


def shown(row: EventRow | LogRow) -> list[Any]:
    """Give all that a process knows of a row."""
    if isinstance(row, LogRow):
        return [getattr(row, name) for name in LogRow.__struct_fields__]
    values = [getattr(row, name) for name in _SHOWN]
    return [list(value) if isinstance(value, (list, tuple)) else value for value in values]


def all_shown(core: Core) -> list[list[Any]]:
    """Give all that a process has followed."""
    return [shown(row) for row in core.tail.rows_since(core.tail.start)]


async def send_through_all(workers: list[Core], room_id: str, count: int) -> None:
    """Have all workers write to one room at once, and wait until each knows all of it."""
    async with asyncio.TaskGroup() as tasks:
        for n in range(count):
            core = workers[n % len(workers)]
            tasks.create_task(core.send(room_id, ALICE, str(n)))
            tasks.create_task(
                core.appender.append_rows([LogRow(kind="device_list", user_id=ALICE, key=str(n))])
            )
    last = await head(workers[0].database)
    for core in workers:
        assert await core.tail.wait_for(last, 15)
        positions = [row.pos for row in core.tail.rows_since(0)]
        assert positions == list(range(1, last + 1))


async def test_what_one_worker_commits_the_others_know_by_redis_alone(
    database: str, redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on another worker would see each message only up to a second later."""
    async with worker(database, redis) as one, worker(database, redis) as two:
        never_asks(two, monkeypatch)
        room_id = await one.create_room()
        for n in range(10):
            sent = await one.send(room_id, ALICE, str(n))
            assert await two.tail.wait_for(sent.pos, 10)
        pos = await one.appender.append_rows(
            [LogRow(kind="device_list", user_id=ALICE, key="k", body=b"{\xff}")]
        )
        assert await two.tail.wait_for(pos, 10)
        ours, theirs = one.tail.rows_since(0), two.tail.rows_since(0)
        assert len(ours) == pos
        for mine, other in zip(ours, theirs, strict=True):
            assert mine is not other
            assert shown(mine) == shown(other)


async def test_workers_that_write_at_once_see_one_log(database: str, redis: PrivateRedis) -> None:
    """The same room would look different depending on the worker."""
    async with (
        worker(database, redis) as one,
        worker(database, redis) as two,
        worker(database, redis) as three,
    ):
        room_id = await one.create_room()
        await send_through_all([one, two, three], room_id, 45)
        assert [shown(row) for row in one.tail.rows_since(0)] == [shown(r) for r in three.tail.rows_since(0)]


async def test_lost_messages_are_read_from_the_log(database: str, redis: PrivateRedis) -> None:
    """A message that Redis lost would be missing for everybody on that worker."""
    choose = random.Random(7)
    lossy = make_bus(redis.config)
    hear = lossy._on_messages
    lossy._on_messages = lambda messages: hear([it for it in messages if choose.random() < 0.5])  # type: ignore[method-assign]
    async with worker(database, redis) as one, worker(database, redis, lossy) as two:
        room_id = await one.create_room()
        await send_through_all([one, two], room_id, 30)


async def test_redis_killed_and_back_empty(database: str, redis: PrivateRedis) -> None:
    """When Redis dies messages would stop, or never be quick again."""
    bus, told = make_bus(redis.config), list[Ephemeral]()
    bus.listen(ephemerals=told.append)
    async with worker(database, redis, bus) as one, worker(database, redis) as two:
        room_id = await one.create_room()
        assert await bus.publish_ephemeral("typing", room_id, b"[1]") is not None
        epoch = bus.ephemeral_now()[1]
        os.kill(redis.pid, signal.SIGKILL)
        await until(lambda: not bus.connected)
        assert await bus.publish_ephemeral("typing", room_id, b"[2]") is None
        await send_through_all([one, two], room_id, 20)
        redis.server._restart()
        await until(lambda: bus.connected and bus.ephemeral_now()[1] != epoch)
        assert told[-1].kind == RESET
        await until(lambda: two.follower._bus.connected)
        await send_through_all([one, two], room_id, 20)
        message = await two.follower._bus.publish_ephemeral("typing", room_id, b"[3]")
        assert message is not None
        await until(lambda: told[-1].body == b"[3]")
        assert bus.ephemeral_now() == (1, message.epoch)


async def test_redis_killed_and_back_from_an_older_dump(redis: PrivateRedis) -> None:
    """Nobody would see who types or is online, until as much was said again as the dump lacked."""
    one, two, told = make_bus(redis.config), make_bus(redis.config), list[Ephemeral]()
    two.listen(ephemerals=told.append)
    async with running_bus(one), running_bus(two):
        for n in range(10):
            if n == 3:
                await redis.ask("SAVE")
            assert await one.publish_ephemeral("typing", f"!{n}", b"[]") is not None
        await until(lambda: two.ephemeral_now()[0] == 10)
        os.kill(redis.pid, signal.SIGKILL)
        await until(lambda: not one.connected and not two.connected)
        redis.server._restart()
        await until(lambda: one.connected and two.connected)
        message = await one.publish_ephemeral("typing", "!new", b"[1]")
        assert message is not None
        await until(lambda: told[-1].key == "!new")
        assert [it.kind for it in told[-2:]] == [RESET, "typing"]
        assert two.ephemeral_now() == (message.count, message.epoch)


async def test_redis_that_stands_still_holds_up_nobody(database: str, redis: PrivateRedis) -> None:
    """While Redis hangs, sending a message would hang, too."""
    bus = make_bus(redis.config)
    async with worker(database, redis, bus) as one, worker(database, redis) as two:
        room_id = await one.create_room()
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                results = await asyncio.gather(
                    *(bus.publish_ephemeral("typing", f"!{n}", b"[]") for n in range(50))
                )
                assert set(results) == {None}
                await send_through_all([one, two], room_id, 20)
            await until(lambda: not bus.connected)
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        await until(lambda: bus.connected and two.follower._bus.connected)
        assert await bus.publish_ephemeral("typing", room_id, b"[]") is not None
        await send_through_all([one, two], room_id, 20)


async def test_a_worker_that_starts_without_redis_serves(database: str, redis: PrivateRedis) -> None:
    """The whole server would not start because Redis does not."""
    await redis.server.stop()
    bus = make_bus(redis.config)
    async with running_core(database, bus=bus) as one, running_bus(bus), running_core(database) as two:
        assert not bus.connected
        room_id = await one.create_room()
        sent = await two.send(room_id, ALICE, "hello")
        assert await one.tail.wait_for(sent.pos, 10)
        await redis.server.start()
        await until(lambda: bus.connected)


async def test_a_message_too_large_for_redis_arrives(database: str, redis: PrivateRedis) -> None:
    """A large import would fill Redis, or never be seen by the other workers."""
    async with worker(database, redis) as one, worker(database, redis) as two:
        rows = [LogRow(kind="device_list", user_id=ALICE, key=str(n), body=b"x" * 60_000) for n in range(30)]
        pos = await one.appender.append_rows(rows)
        assert await two.tail.wait_for(pos, 10)
        assert [row.key for row in two.tail.rows_of_user(ALICE, 0)] == [row.key for row in rows]


async def test_what_can_not_be_read_harms_nobody(database: str, redis: PrivateRedis) -> None:
    """One worker of a newer version, or anything else in Redis, would stop all others."""
    async with worker(database, redis) as one, worker(database, redis) as two:
        room_id = await one.create_room()
        for channel in ("test:log", "test:ephemeral"):
            for message in (
                b"",
                b"rubbish",
                b"\x01" + b"\xff" * 40,
                b"\x02" + b"\xff" * 40,
                b"1 2 3",
                b"\0" * 25,
            ):
                await redis.ask("PUBLISH", channel, message)
        newer = encode_batch(Batch(one.tail.pos, one.tail.pos + 1, []), b"newerver")
        sent = await one.send(room_id, ALICE, "hello")
        await redis.ask("PUBLISH", "test:log", b"\x63" + newer[1:])
        assert await two.tail.wait_for(sent.pos, 10)
        await send_through_all([one, two], room_id, 6)


async def test_servers_that_share_a_redis_do_not_hear_each_other(redis: PrivateRedis) -> None:
    """One server's users would be seen typing on another server."""
    one, other = make_bus(redis.config, "a:"), make_bus(redis.config, "b:")
    heard: list[Any] = []
    other.listen(batches=heard.append, ephemerals=heard.append)
    async with running_bus(one), running_bus(other):
        heard.clear()
        await one.publish(Batch(0, 1, [LogRow(kind="k", pos=1)]))
        assert await one.publish_ephemeral("typing", "!r", b"[]") is not None
        assert await other.publish_ephemeral("typing", "!r", b"[]") is not None
        assert [message.count for message in heard] == [1]


async def test_ephemerals_are_heard_in_one_order_everywhere(redis: PrivateRedis) -> None:
    """A user would be shown typing after they stopped, on some workers."""
    buses = [make_bus(redis.config) for _ in range(3)]
    heard: list[list[tuple[int, str, bytes]]] = [[] for _ in buses]
    for bus, mine in zip(buses, heard, strict=True):

        def note(message: Ephemeral, mine: list[tuple[int, str, bytes]] = mine) -> None:
            if message.kind != RESET:
                mine.append((message.count, message.key, message.body))

        bus.listen(ephemerals=note)
    async with running_bus(buses[0]), running_bus(buses[1]), running_bus(buses[2]):

        async def say(n: int) -> None:
            bus = buses[n % 3]
            message = await bus.publish_ephemeral("typing", f"!{n % 5}", b"%d" % n)
            assert message is not None
            assert bus.ephemeral_now()[0] >= message.count  # the sender heard it, too

        await asyncio.gather(*(say(n) for n in range(60)))
        await until(lambda: all(len(mine) == 60 for mine in heard))
        assert heard[0] == heard[1] == heard[2]
        assert [count for count, _, _ in heard[0]] == list(range(1, 61))


async def test_a_worker_that_starts_or_returns_knows_who_types(redis: PrivateRedis) -> None:
    """After a worker's restart its users would see nobody online until each of them moved."""
    one, late = make_bus(redis.config), make_bus(redis.config)
    heard: list[Ephemeral] = []
    late.listen(ephemerals=heard.append)
    async with running_bus(one):
        for body in (b"old", b"new"):
            for n in range(50):
                assert await one.publish_ephemeral("presence", f"@{n}", body) is not None
        async with running_bus(late):
            assert heard[0].kind == RESET
            assert [m.key for m in heard[1:]] == [f"@{n}" for n in range(50)]
            assert {m.body for m in heard[1:]} == {b"new"}
            assert late.ephemeral_now() == one.ephemeral_now()
        heard.clear()
        assert await one.publish_ephemeral("presence", "@x", b"missed") is not None
        assert await one.publish_ephemeral("presence", "@0", b"missed") is not None
        async with running_bus(late):
            assert [m.key for m in heard] == ["@x", "@0"]
            assert late.ephemeral_now() == one.ephemeral_now()
            before = {one._subscription, late._subscription}
            await redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: before.isdisjoint({one._subscription, late._subscription}))
            await until(lambda: one.connected and late.connected)
            message = None
            while message is None:  # one that was under way when the connection broke
                message = await one.publish_ephemeral("presence", "@y", b"back")
            await until(lambda: heard[-1].key == "@y")


async def test_many_states_are_loaded_in_pages(redis: PrivateRedis) -> None:
    """On a large server a worker that starts would know only some of those who are online."""
    one, late = make_bus(redis.config), make_bus(redis.config)
    keys: list[str] = []
    late.listen(ephemerals=lambda message: keys.append(message.key))
    async with running_bus(one):
        for start in range(0, 2300, 100):
            await asyncio.gather(
                *(one.publish_ephemeral("presence", f"@{n}", b"on") for n in range(start, start + 100))
            )
        async with running_bus(late):
            assert sorted(keys[1:]) == sorted(f"@{n}" for n in range(2300))


async def test_a_worker_nobody_waits_at_reads_later_and_at_once_when_asked(
    database: str, redis: PrivateRedis
) -> None:
    """A worker would wake for every message in vain; or answer with what is half a second old."""
    idle = make_bus(redis.config)
    idle.relax_unless(lambda: False)
    pieces = 0

    def count(batch: Batch) -> None:
        nonlocal pieces
        pieces += 1

    idle.listen(batches=count)
    async with worker(database, redis) as one, worker(database, redis, idle) as two:
        room_id = await one.create_room()
        idle._attentive_until = 0.0  # nobody has asked for anything lately
        await until(lambda: idle._resting is None)
        pieces, before = 0, one.appender.commits
        for n in range(20):
            sent = await one.send(room_id, ALICE, str(n))
        await until(lambda: two.tail.pos == sent.pos)  # by itself
        await until(lambda: pieces)
        assert pieces < one.appender.commits - before, "it was woken for each"
        await until(lambda: idle._resting is None)
        for n in range(20):
            sent = await one.send(room_id, ALICE, f"after a rest {n}")
        await until(lambda: idle._resting is not None)
        assert await two.tail.wait_for(sent.pos, 10)
        assert idle._resting is None


class Attentive:
    """What a process knows of those who wait at others, as a test says."""

    def __init__(self) -> None:
        self.elsewhere = False
        self.is_news = False
        self.holds = False
        self.said = 0

    def attend(self) -> bool:
        self.said += 1
        return self.is_news

    def hold(self) -> bool:
        self.holds = not self.elsewhere
        return self.holds

    def release(self) -> None:
        self.holds = False


def holding_bus(redis: PrivateRedis) -> tuple[RedisBus, Attentive]:
    """Give a bus that tells of commits at once only if somebody waits elsewhere."""
    bus, attention = make_bus(redis.config), Attentive()
    bus.hold_unless(attention)
    return bus, attention


@asynccontextmanager
async def holding_for_ever(
    database: str, redis: PrivateRedis, bus: RedisBus, reader: RedisBus, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Core, Core, str]]:
    """Run a worker that tells what it holds back when it must, and one that hears of it by Redis alone."""
    monkeypatch.setattr("ranvier.log.holding._HOLDS_S", 3600.0)
    async with worker(database, redis, bus) as one, worker(database, redis, reader) as two:
        await until(lambda: not bus._alone)
        room_id = await one.create_room()
        two.follower._heartbeat_s = 3600
        never_asks(two, monkeypatch)
        yield one, two, room_id


async def published(redis: PrivateRedis) -> int:
    """Give how many messages were published."""
    statistics = await redis.ask("INFO", "commandstats")
    lines = [line for line in statistics.decode().splitlines() if line.startswith("cmdstat_publish:")]
    return int(lines[0].partition("calls=")[2].partition(",")[0])


async def test_commits_are_told_together_while_nobody_waits_for_them(
    database: str, redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message would wake Redis and all workers in vain, and cost a twentieth more."""
    bus, _ = holding_bus(redis)
    async with worker(database, redis, bus) as one, worker(database, redis) as two:
        await until(lambda: not bus._alone)
        room_id = await one.create_room()
        await two.tail.wait_for(one.tail.pos, 10)
        never_asks(two, monkeypatch)
        before, commits = await published(redis), one.appender.commits
        for n in range(40):
            sent = await one.send(room_id, ALICE, str(n))
        assert await two.tail.wait_for(sent.pos, 10)
        assert one.appender.commits == commits + 40
        # A machine that stands still may take longer, and then there are more.
        assert await published(redis) < before + 30
        assert all_shown(two) == all_shown(one)


async def test_what_was_held_back_is_told_before_what_somebody_waits_for(
    database: str, redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who begins to wait would get their messages a quarter second late, or out of order."""
    bus, attention = holding_bus(redis)
    reader, begins = holding_bus(redis)
    async with holding_for_ever(database, redis, bus, reader, monkeypatch) as (one, two, room_id):
        sent = await one.send(room_id, ALICE, "nobody waits")
        await asyncio.sleep(0.1)
        assert two.tail.pos < sent.pos
        begins.is_news = True
        assert await two.tail.wait_for(sent.pos, 10), "who begins to wait has it told"
        begins.is_news = False
        await one.send(room_id, ALICE, "nobody waits any more")
        attention.elsewhere = True
        for n in range(3):
            sent = await one.send(room_id, ALICE, f"somebody waits {n}")
            assert await two.tail.wait_for(sent.pos, 10)
        assert all_shown(two) == all_shown(one)


async def test_no_more_is_held_back_than_one_message_can_tell(
    database: str, redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load each worker would read from the database what is too much for one message."""
    bus, _ = holding_bus(redis)
    reader = make_bus(redis.config)
    async with holding_for_ever(database, redis, bus, reader, monkeypatch) as (one, two, room_id):
        for _ in range(24):
            sent = await one.send(room_id, ALICE, "x" * 40_000)
        assert await two.tail.wait_for(sent.pos - 4, 10)


async def test_what_is_held_back_is_told_by_who_ends(
    redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers would notice a second later what a worker committed last before it was stopped.

    Where another one committed in between they would skip that.
    """
    monkeypatch.setattr("ranvier.log.holding._HOLDS_S", 3600.0)
    heard: list[tuple[int, int]] = []
    other = make_bus(redis.config)
    other.listen(batches=lambda batch: heard.append((batch.previous, batch.last)))
    bus, attention = holding_bus(redis)
    bus.relax_unless(lambda: True)
    async with running_bus(other):
        async with running_bus(bus):
            await until(lambda: attention.said)  # it runs
            for previous in (10, 11, 20, 21):
                await bus.publish(Batch(previous, previous + 1, [LogRow(kind="test", pos=previous + 1)]))
            await until(lambda: (10, 12) in heard)
            assert heard[-1] == (10, 12)
        await until(lambda: heard[-1] == (20, 22))


async def test_others_know_as_long_as_somebody_waits(redis: PrivateRedis) -> None:
    """Who waits at a quiet worker would get messages a quarter second late after the first two seconds."""
    bus, attention = holding_bus(redis)
    waits = True
    bus.relax_unless(lambda: waits)
    async with running_bus(bus):
        said = attention.said
        await until(lambda: attention.said > said + 1)
        waits = False
        await asyncio.sleep(0)
        said = attention.said
        await asyncio.sleep(2.5)
        assert attention.said <= said


async def test_a_lone_worker_tells_redis_nothing_until_somebody_comes(
    database: str, redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of one worker would pay for messages that nobody hears; or who comes to it would hear late."""
    bus = make_bus(redis.config)
    async with worker(database, redis, bus) as one:
        await until(lambda: bus._alone)
        room_id, before = await one.create_room(), await published(redis)
        await one.send(room_id, ALICE, "nobody hears this")
        assert await published(redis) == before
        subscription = bus._subscription
        assert subscription is not None
        subscription.pause()
        async with worker(database, redis) as two:
            # It is there, and the other one does not know it yet.
            two.follower._heartbeat_s = 60
            sent = await one.send(room_id, ALICE, "this is heard late")
            subscription.resume()
            assert await two.tail.wait_for(sent.pos, 10)
            assert not bus._alone
            never_asks(two, monkeypatch)
            for n in range(10):
                sent = await one.send(room_id, ALICE, f"this is heard at once {n}")
                assert await two.tail.wait_for(sent.pos, 10)


async def test_a_worker_that_rests_takes_much_at_once(redis: PrivateRedis) -> None:
    """Behind a busy writer a worker would fall back, take Redis for lost and ask the database for all."""
    idle, other = make_bus(redis.config), make_bus(redis.config)
    idle.relax_unless(lambda: False)
    heard = 0

    def count(body: bytes) -> None:
        nonlocal heard
        heard += len(body)

    idle.on_broadcast("much", count)
    async with running_bus(idle), running_bus(other):
        idle._attentive_until = 0.0
        subscription = idle._subscription
        for n in range(1, 101):
            for _ in range(4):
                other.broadcast("much", b"x" * 50_000)
            await asyncio.sleep(0.01)
            if n % 25 == 0:
                await until(lambda n=n: heard >= n * 200_000, 2)
        assert idle._subscription is subscription
        other.broadcast("much", b"x")
        await until(lambda: idle._resting is not None)


async def test_a_worker_that_rests_hears_of_a_redis_that_is_lost(redis: PrivateRedis) -> None:
    """A worker would believe for ever that nothing happens."""
    idle = make_bus(redis.config)
    idle.relax_unless(lambda: False)
    async with running_bus(idle), running_bus(make_bus(redis.config)) as other:
        await other.publish(Batch(0, 1, []))
        await until(lambda: idle._resting is not None)
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            await until(lambda: not idle.connected)
            assert idle._resting is None
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        await until(lambda: idle.connected)


async def test_workers_together_allow_one_burst(redis: PrivateRedis) -> None:
    """With N workers somebody could guess N times as many passwords."""
    limiters: list[RateLimiter] = []
    buses = [make_bus(redis.config) for _ in range(3)]
    for bus in buses:
        counts = SharedCounts(bus)
        limiter = RateLimiter({"rc_login.address": Rate(0.001, 6)}, counted=counts.count)
        counts.listen(lambda name, key, cost, it=limiter: it.count_elsewhere(name, key, cost, 0.0))
        limiters.append(limiter)

    def used(limiter: RateLimiter) -> float:
        return limiter._empty_at.get(("rc_login.address", "1.2.3.4"), 0.0) * 0.001

    async with running_bus(buses[0]), running_bus(buses[1]), running_bus(buses[2]):
        for n in range(6):
            limiters[n % 3].check("rc_login.address", "1.2.3.4", 0.0)
            await until(lambda n=n: all(used(limiter) > n + 0.5 for limiter in limiters))
        for limiter in limiters:
            with pytest.raises(MatrixError):
                limiter.check("rc_login.address", "1.2.3.4", 0.0)
            limiter.check("rc_login.address", "4.3.2.1", 0.0)


async def test_a_password_and_a_database_number(redis: PrivateRedis) -> None:
    """A Redis that is secured could not be used; or a wrong password would not be said."""
    await redis.ask("CONFIG", "SET", "requirepass", "s3cret")
    secured = RedisConfig(path=redis.config.path, password="s3cret")
    connection = await RedisConnection.open(secured)
    assert await connection.command("ECHO", "x") == b"x"
    connection.close()
    for wrong in (redis.config, RedisConfig(path=redis.config.path, password="no")):
        with pytest.raises(RedisUnavailable, match=r"(?i)auth|password"):
            await RedisConnection.open(wrong)
    with pytest.raises(RedisUnavailable, match="range"):
        await RedisConnection.open(RedisConfig(path=redis.config.path, password="s3cret", dbid=99))


async def test_redis_asks_for_a_certificate_and_is_shown_it(redis: PrivateRedis, tmp_path: Path) -> None:
    """A Redis that lets in only those with a key of their own could not be used."""
    await asyncio.to_thread(make_certificate, tmp_path)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    asks = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    asks.load_cert_chain(certificate, key)
    asks.verify_mode = ssl.CERT_REQUIRED
    assert redis.config.path is not None
    async with tcp_port_of(redis.config.path, asks) as port:
        unknown = RedisConfig(host="localhost", port=port, use_tls=True, ca_file=certificate)
        with pytest.raises(RedisUnavailable):
            await (await RedisConnection.open(unknown)).command("ECHO", "x")
        known = replace(unknown, certificate_file=certificate, private_key_file=key)
        connection = await RedisConnection.open(known)
        assert await connection.command("ECHO", "x") == b"x"
        connection.close()


def test_a_redacted_event_stays_redacted_on_the_way() -> None:
    """What was deleted would be readable on the other workers."""

    def event(n: int, content: bytes) -> EventRow:
        pdu = b'{"content":%b,"type":"m.room.message","room_id":"!r","sender":"@a:b"}' % content
        return EventRow(
            event_nid=n,
            room_nid=1,
            room_id="!r",
            version_id="12",
            event_id=f"${n}",
            type="m.room.message",
            state_key=None,
            sender="@a:b",
            depth=n,
            origin_server_ts=5,
            pdu=pdu,
            snapshot_nid=None,
            pos=n,
        )

    secret = event(1, b'{"body":"secret"}')
    secret.set_redacted(event(2, b"{}"))
    message = encode_batch(Batch(0, 1, [secret]), b"12345678")
    decoded = decode_batch(message, decode_header(message)).rows[0]
    assert isinstance(decoded, EventRow)
    assert decoded.content == {}
    assert decoded.redacted_because is not None
    assert decoded.redacted_because.event_id == "$2"
