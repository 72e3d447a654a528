"""Who may be waiting for a commit at another worker, wherever that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from ranvier.cluster import lately
from ranvier.cluster.attention import Attention
from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.members import Members
from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection
from ranvier.wire.members import Member
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.postgres import private_folder

_MESSAGES = 100


def member(name: str, heads: str = "here", *, says_attention: bool = True) -> Member:
    """Make a worker."""
    return Member(
        name=name,
        instance=name,
        pid=1,
        host="a",
        address="unix:/a",
        heads=heads,
        says_attention=says_attention,
    )


class Neighbours:
    """The members of a cluster, and their memory."""

    def __init__(self) -> None:
        self.own = member("own")
        self.found: list[Member] = []
        self.knows_all = True
        self.may_hold = True
        self._change: Callable[[], None] = lambda: None

    def others(self) -> list[Member]:
        return self.found

    def listen(self, change: Callable[[], None]) -> None:
        self._change = change

    def are(self, *found: Member) -> None:
        self.found = list(found)
        self._change()

    def hold(self) -> bool:
        return self.may_hold


@pytest.fixture
def neighbours() -> Neighbours:
    """Give those who are there: nobody yet."""
    return Neighbours()


@pytest.fixture
def attention(neighbours: Neighbours) -> Attention:
    """Give what a worker knows of them."""
    return Attention(cast(HeadBoard, neighbours), cast(Members, neighbours))


def test_nobody_waits_at_workers_of_this_machine_that_say_nothing(
    neighbours: Neighbours, attention: Attention
) -> None:
    """Commits would be told one by one for nobody."""
    assert attention.hold()
    neighbours.are(member("one"), member("two"))
    assert attention.hold()
    neighbours.may_hold = False
    assert not attention.hold()


@pytest.mark.parametrize(
    "other", [member("elsewhere", "there"), member("older", says_attention=False)], ids=lambda it: it.name
)
def test_who_cannot_say_so_may_wait(
    neighbours: Neighbours, attention: Attention, other: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages would be late on another machine, and during an update at the workers of the old release."""
    neighbours.are(member("one"), other)
    assert not attention.hold()
    neighbours.are(member("one"))
    assert not attention.hold(), "perhaps it is only our way to it that is lost"
    monkeypatch.setattr(lately, "_UNHEARD_S", 0.0)
    neighbours.are(other)
    neighbours.are(member("one"))
    assert attention.hold()


def test_who_is_not_known_yet_may_wait(neighbours: Neighbours, attention: Attention) -> None:
    """Messages would be late on other machines after a start, and once Redis is back."""
    neighbours.knows_all = False
    assert not attention.hold()


@asynccontextmanager
async def told_of(cluster: ClusterProcess) -> AsyncIterator[list[bytes]]:
    """Give, while it is open, what Redis tells of commits."""
    told: list[bytes] = []
    config = RedisConfig(path=cluster.folder / "data" / "redis" / "redis.sock")
    connection = await RedisConnection.open(config, lambda found: told.extend(it for _, it in found))
    try:
        channels = await connection.command("PUBSUB", "CHANNELS", "*:log")
        await connection.command("SUBSCRIBE", channels[0])
        yield told
    finally:
        connection.close()


async def test_commits_are_told_one_by_one_only_where_somebody_waits() -> None:
    """A message would come late to who waits at another worker; or each would wake all workers in vain."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 2)
        try:
            await cluster.start()
            await _send_watched(cluster)
        finally:
            await cluster.stop()


async def _send_watched(cluster: ClusterProcess) -> None:
    writer = next(name for name, it in (await cluster.workers()).items() if it["takes_rooms"])
    other = "worker2" if writer == "worker1" else "worker1"
    sender = HoppingClient([cluster.worker_socket(writer)])
    await sender.register()
    reader = HoppingClient([cluster.worker_socket(other)])
    reader.token = sender.token
    room_id = await sender.create_room()

    async def told() -> int:
        async with told_of(cluster) as found:
            for number in range(_MESSAGES):
                await sender.send(room_id, str(number))
            await asyncio.sleep(0.5)
            return len(found)

    try:
        async with asyncio.timeout(60):
            while await told() > _MESSAGES / 2:  # it has just started, and does not know yet who is there
                await asyncio.sleep(1)
        filters = '{"room": {"timeline": {"not_types": ["m.room.message"]}}}'
        since = (await reader.sync())["next_batch"]
        waiting = asyncio.create_task(reader.sync(since, 30_000, filter=filters))
        await asyncio.sleep(3)  # it is known for longer than one saying of it lasts
        assert await told() > _MESSAGES / 2
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    finally:
        await sender.close()
        await reader.close()
