"""What is passed on to a worker that stands still is done by somebody else, and not once more later."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from ranvier.processes.postgres import running_dsn
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import IN_FLIGHT, QUEUED, figures
from tests.postgres import private_folder
from tests.server.http_client import Unavailable

_ATTEMPTS = 50


class _PassedOn:
    """Have a state event passed on to the writer, and waiting there for its commit."""

    def __init__(self, cluster: ClusterProcess, writer: str, locking: asyncpg.Connection) -> None:
        self.locking = locking
        self.writer = cluster.worker_socket(writer)
        other = next(f"worker{number}" for number in (1, 2, 3) if f"worker{number}" != writer)
        self.there = HoppingClient([self.writer])
        self.here = HoppingClient([cluster.worker_socket(other)])
        self.room_id = self.another = ""

    async def gather(self) -> None:
        await self.here.register()
        self.there.token = self.here.token
        self.room_id = await self.here.create_room()
        self.another = await self.here.create_room()

    def put(self, topic: str) -> Any:
        return self.here.put(f"/v3/rooms/{quote(self.room_id)}/state/m.room.topic", {"topic": topic})

    async def topics(self) -> list[str]:
        """Give what both workers say the topic is."""
        path = f"/v3/rooms/{quote(self.room_id)}/state/m.room.topic"
        return [(await client.get(path))["topic"] for client in (self.here, self.there)]

    async def begin(self) -> tuple[asyncio.Task[Any], asyncio.Task[Any]]:
        """Give a state event that waits at the writer behind a commit that waits for the lock, and that."""
        for number in range(_ATTEMPTS):
            # Who wrote there just now is asked to write again: a matter of some milliseconds.
            await self.there.send(self.room_id, f"just now {number}")
            await self.locking.execute("BEGIN; SELECT pos FROM log_head FOR UPDATE")
            before = asyncio.create_task(self.there.send(self.another, f"before {number}"))
            passed_on = asyncio.create_task(self.put(f"old {number}"))
            for _ in range(20):
                now = await figures(self.writer)
                if now[IN_FLIGHT] >= 3 and now[QUEUED] >= 1:
                    return passed_on, before
                await asyncio.sleep(0.005)
            await self.locking.execute("ROLLBACK")
            await asyncio.gather(passed_on, before)
        raise AssertionError("nothing was passed on")


@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_state_event_is_not_done_again_when_the_worker_it_was_passed_on_to_goes_on(
    confirmed: bool,
) -> None:
    """A topic (or a ban) would come back that was replaced since, as a worker stood still for a while."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 3)
        try:
            await cluster.start()
            workers = await cluster.workers()
            (writer,) = (name for name, it in workers.items() if it["takes_rooms"])
            pid = workers[writer]["pid"]
            dsn = running_dsn(folder / "data")
            assert dsn is not None
            async with AsyncExitStack() as stack:
                locking = await asyncpg.connect(dsn)
                stack.push_async_callback(locking.close)
                it = _PassedOn(cluster, writer, locking)
                for client in (it.here, it.there):
                    await stack.enter_async_context(client)
                await it.gather()
                passed_on, before = await it.begin()
                await asyncio.sleep(0.1 if confirmed else 0.0)
                os.kill(pid, signal.SIGSTOP)
                try:
                    await locking.execute("ROLLBACK")
                    async with asyncio.timeout(20):
                        with suppress(Unavailable):
                            await passed_on
                        await it.put("new")
                finally:
                    os.kill(pid, signal.SIGCONT)
                async with asyncio.timeout(20):
                    await before
                    while (await figures(it.writer))[IN_FLIGHT] > 1:
                        await asyncio.sleep(0.01)
                assert await it.topics() == ["new", "new"]
        finally:
            await cluster.stop()
