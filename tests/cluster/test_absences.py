"""A worker that dies and stays dead: others look after what it looked after."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from ranvier.cluster.absences import Absences
from ranvier.cluster.members import Members
from ranvier.cluster.placement import Placement
from ranvier.wire.members import Member
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.log_lock import connection_of
from tests.cluster.test_worker_life import running
from tests.postgres import private_folder

NOTHING = '{"room": {"rooms": []}, "presence": {"types": []}}'
"""A filter with which nobody's news end a long poll."""


@pytest.fixture
async def quick_cluster() -> AsyncIterator[ClusterProcess]:
    """Give a server of two workers on which who stops syncing is offline after two seconds."""
    with private_folder() as folder:
        process = ClusterProcess(folder, 2, {"presence": {"sync_online_timeout": "2s"}})
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


async def test_users_of_a_worker_that_stays_dead_are_offline(quick_cluster: ClusterProcess) -> None:
    """Whoever was connected to it would be online for ever; those who reconnect would come and go."""
    workers = [quick_cluster.worker_socket(name) for name in ("worker1", "worker2")]
    with running(quick_cluster, "extra") as extra:
        await extra.hear("READY=1")
        async with (
            HoppingClient(workers) as alice,
            HoppingClient([extra.socket]) as bob,
            HoppingClient([extra.socket]) as carol,
        ):
            for client in (alice, bob, carol):
                await client.register()
            room_id = await alice.create_room()
            waiting = []
            for client in (bob, carol):
                await client.join(room_id)  # which would end the wait of who is there
            for client in (bob, carol):
                since = (await client.sync())["next_batch"]
                waiting.append(asyncio.create_task(client.sync(since, 60_000, filter=NOTHING)))
            told, since = await presence(alice, None)
            while not told.keys() >= {bob.user_id, carol.user_id}:
                more, since = await presence(alice, since)
                told |= more
            await written(quick_cluster, "extra", 2)
            assert not any(it.done() for it in waiting), "nobody waits there any more"
            os.kill(extra.process.pid, signal.SIGKILL)
            await asyncio.gather(*waiting, return_exceptions=True)
            await carol.close()
            carol.sockets = workers
            syncing = asyncio.create_task(keep_syncing(carol))
            try:
                seen: list[str] = []
                async with asyncio.timeout(60):
                    while told[bob.user_id] != "offline":
                        more, since = await presence(alice, since)
                        told |= more
                        seen += [more[carol.user_id]] if carol.user_id in more else []
                # Whoever took over has asked for both by now.
                told, _ = await presence(alice, None)
                assert (told.get(carol.user_id), told.get(bob.user_id)) == ("online", None)
                assert "offline" not in seen
            finally:
                syncing.cancel()
                await asyncio.gather(syncing, return_exceptions=True)


async def written(cluster: ClusterProcess, worker: str, count: int) -> None:
    """Wait until it is written that so many users are connected to a worker."""
    async with asyncio.timeout(60), connection_of(cluster) as connection:
        while await connection.fetchval("SELECT count(*) FROM presence WHERE process = $1", worker) < count:
            await asyncio.sleep(0.1)


async def presence(client: HoppingClient, since: str | None) -> tuple[dict[str, str], str]:
    """Sync once and give what is told of presence, by user."""
    answer = await client.sync(since, 0 if since is None else 1000, set_presence="offline")
    events = answer.get("presence", {}).get("events", [])
    return {event["sender"]: event["content"]["presence"] for event in events}, answer["next_batch"]


async def keep_syncing(client: HoppingClient) -> None:
    """Sync as a client does, until cancelled."""
    since = None
    while True:
        since = (await client.sync(since, 10_000))["next_batch"]


class Registry:
    """Stand where Redis is."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def announce(self, name: str, value: bytes, lease_ms: int) -> list[bytes]:
        """Keep an announcement and give everybody's."""
        self.values[name] = value
        return list(self.values.values())

    async def all(self) -> list[bytes]:
        """Give everybody's announcement."""
        return list(self.values.values())

    async def withdraw(self, name: str) -> None:
        """Forget a worker."""
        del self.values[name]


async def test_exactly_one_worker_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """All would take over at once, or from a worker that is only being started again, or nobody."""
    now_s = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now_s, process_time=time.process_time)
    monkeypatch.setattr("ranvier.cluster.members.time", clock)
    registry, taken = Registry(), list[tuple[str, str]]()
    left = {"dead", "away for a moment", "one", "two", "three"}

    async def left_by() -> set[str]:
        return left

    workers: dict[str, tuple[Members, Absences]] = {}
    for name in ("one", "two", "three", "away for a moment"):
        own = Member(name=name, instance=name, pid=1, host="host", address="unix:/nowhere")
        members = Members(own, registry, dict)

        async def take_over(process: str, by: str = name) -> None:
            taken.append((by, process))

        absences = Absences(
            members=members, placement=Placement(members), left_by=left_by, take_over=take_over
        )
        workers[name] = members, absences

    async def look(*names: str) -> None:
        nonlocal now_s
        for name in names:
            await workers[name][0].beat()
        for name in names:
            await workers[name][0].beat()
            await workers[name][1].look()
        now_s += 5

    three = ("one", "two", "three")
    await look(*three, "away for a moment")  # of a Redis that may be new nobody believes that it knows all
    await look(*three)
    assert taken == []
    await look(*three, "away for a moment")
    await look(*three, "away for a moment")
    assert {process for _, process in taken} == {"dead"}
    assert len({by for by, _ in taken}) == 1
    left.discard("dead")
    taken.clear()
    await look(*three, "away for a moment")
    assert taken == []
