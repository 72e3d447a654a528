"""Workers that die, freeze, come and go while people talk: nothing answered is lost or told twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.chaos.clients import Direct, Through
from tests.chaos.excuses import AT_ONCE_S, How
from tests.chaos.faults import TRANSIT_OF_ONE, Faults
from tests.chaos.talk import EVERYBODY_SAYS, Talk
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.last_commit import last_commit
from tests.cluster.late_writes import late_writes
from tests.postgres import private_folder
from tests.server.http_client import HttpClient


@asynccontextmanager
async def talking(cluster: ClusterProcess, sockets: Sequence[str] = ()) -> AsyncIterator[Talk]:
    """Have six people talk in one room: four through the front, two asking workers at random."""
    names = sockets or [f"worker{number}" for number in (1, 2, 3, 4)]
    async with AsyncExitStack() as stack:
        members: list[HttpClient] = []
        for number in range(6):
            client = (
                Through(cluster.url, seed=number)
                if number < 4
                else Direct([cluster.worker_socket(name) for name in names], seed=number)
            )
            members.append(await (await stack.enter_async_context(client)).register())
        room_id = await members[0].create_room(power_level_content_override=EVERYBODY_SAYS)
        for member in members[1:]:
            await member.join(room_id)
        talk = Talk(members, [room_id], seed=0, pause_s=0.05)
        started = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk.run(started))
            await started.wait()
            yield talk
            talk.finish()


async def test_workers_are_killed_one_after_the_other(own_cluster: ClusterProcess) -> None:
    """A crash would lose a message, tell it twice, or leave the server with a worker less."""
    faults = Faults(own_cluster, random.Random(0), pause_s=0)
    excuses = []
    async with talking(own_cluster) as talk:
        for name in ("worker1", "worker2", "worker3", "worker4"):
            pid = faults.pid(name)
            excuse = await faults.end_at_once([pid])
            excuses.append(excuse)
            # The others go on meanwhile: nobody waits until it is back.
            await talk.wait_said(3 * len(talk.members), timeout_s=AT_ONCE_S)
            await own_cluster.wait_live(4, but_pids=[pid])
            assert excuse.late(talk.take_messages()) == []
    failures = talk.failures
    for excuse in excuses:
        failures = excuse.stray(failures)
    assert failures == []
    assert len(talk.answered) > 50


async def test_the_last_commit_of_a_worker_that_is_killed_takes_place() -> None:
    """Whoever was not answered says it again, and it would be there twice, or be lost with the worker."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 2)
        try:
            await cluster.start()
            (writer,) = (name for name, it in (await cluster.workers()).items() if it["takes_rooms"])
            async with last_commit(cluster, writer) as last:
                await cluster.kill_worker(writer)
            assert last.took_place
        finally:
            await cluster.stop()


async def test_a_frozen_worker_does_no_harm(own_cluster: ClusterProcess) -> None:
    """While one worker stands still others would wait for it; and what it does late would break the order."""
    faults = Faults(own_cluster, random.Random(0), pause_s=0)
    async with talking(own_cluster, ["worker1", "worker2", "worker3"]) as talk:
        pid = faults.pid("worker4")
        excuse = await faults.freeze(pid)
        try:
            async with asyncio.timeout(20), HttpClient(own_cluster.url) as newcomer:
                while "worker4" in await own_cluster.workers():
                    await newcomer.get("/versions")
                before = len(talk.answered)
                await newcomer.register()
                room_id = await newcomer.create_room()
                for number in range(20):
                    await newcomer.send(room_id, str(number))
                while len(talk.answered) < before + 20:
                    await asyncio.sleep(0.05)
        finally:
            excuse = await faults.thaw(pid, excuse)
        await own_cluster.wait_live(4)
    assert excuse.stray(talk.failures) == []
    assert excuse.late(talk.take_messages()) == []


async def test_what_a_frozen_writer_had_in_hand_comes_late_and_undoes_nothing() -> None:
    """A worker that goes on would bring back whoever was banned meanwhile, or say again what it had said."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 3)
        try:
            await cluster.start()
            workers = await cluster.workers()
            (writer,) = (name for name, it in workers.items() if it["takes_rooms"])
            pid = workers[writer]["pid"]
            async with late_writes(cluster, writer) as late:
                async with late.under_way(alone=True):
                    os.kill(pid, signal.SIGSTOP)
                try:
                    await late.overtake()
                    async with asyncio.timeout(20):
                        while writer in await cluster.workers():
                            await asyncio.sleep(0.05)
                    assert await late.is_committed(), "PostgreSQL was not at work on what it had in hand"
                finally:
                    os.kill(pid, signal.SIGCONT)
                # The message, that of who was banned, and the join: each was computed on an old head.
                assert await late.check() >= 3
        finally:
            await cluster.stop()


async def test_a_worker_is_added_and_another_drained(own_cluster: ClusterProcess) -> None:
    """Somebody's request would fail while workers come and go in good order, through the front at least."""
    async with talking(own_cluster, ["worker1"]) as talk:
        os.kill(own_cluster.pid, signal.SIGTTIN)
        assert await own_cluster.wait_live(5) == [f"worker{number}" for number in (1, 2, 3, 4, 5)]
        os.kill(own_cluster.pid, signal.SIGTTOU)
        assert await own_cluster.wait_live(4) == [f"worker{number}" for number in (1, 2, 3, 4)]
    # Those who write all the time may write on a connection that was closed in the moment before.
    assert all(it.how is How.CUT for it in talk.failures)
    assert len(talk.failures) <= TRANSIT_OF_ONE


async def test_a_worker_of_its_own_joins_and_takes_its_share(own_cluster: ClusterProcess) -> None:
    """`ranvier worker` beside a running server would not find it, or would be given nothing to do."""
    socket = own_cluster.folder / "extra.sock"
    (own_cluster.folder / "extra.yaml").write_text(
        f'worker_name: extra\nworker_listeners: [{{type: http, path: "{socket}", '
        "resources: [{names: [client, health]}]}]\n"
    )
    async with talking(own_cluster, ["worker1", "worker2"]) as talk:
        with (own_cluster.folder / "server.log").open("ab") as log:
            extra = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ranvier.app.worker", "--data", str(own_cluster.folder / "data")),
                    *("--config-path", str(own_cluster.folder / "homeserver.yaml")),
                    *("--config-path", str(own_cluster.folder / "extra.yaml")),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            await own_cluster.wait_live(5)
            async with HoppingClient([socket]) as client:
                await client.register()
                await client.send(await client.create_room(), "hello")
            async with HoppingClient([own_cluster.worker_socket("worker1")]) as client:
                await client.register()
                for _ in range(40):
                    await client.send(await client.create_room(), "hello")
            async with asyncio.timeout(10):
                # Rooms that are placed on it are written by it, whoever was asked; it was asked three times.
                while (await own_cluster.workers())["extra"]["requests"] <= 3:
                    await asyncio.sleep(0.1)
        finally:
            extra.terminate()
            assert await asyncio.to_thread(extra.wait, 20) == 0
        assert len(await own_cluster.wait_live(4)) == 4
    assert talk.failures == []
