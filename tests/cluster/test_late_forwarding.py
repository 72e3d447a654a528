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

from ranvier.log.standstill import LONGEST_S, Standstill
from ranvier.processes.postgres import running_dsn
from ranvier.processes.successors import Successors
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import IN_FLIGHT, QUEUED, figures
from tests.cluster.test_writers import Machine
from tests.postgres import private_folder
from tests.server.http_client import Refused, Unavailable
from tests.test_standstill import Now

_ATTEMPTS = 50
COMMITTED, COMPUTED, QUEUED_IN_ROOM = "in its commit", "waits for the next commit", "waits for its room"
_WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


class _PassedOn:
    """Have a state event passed on to the writer, and come there as far as ``where`` says."""

    def __init__(self, cluster: ClusterProcess, writer: str, locking: asyncpg.Connection, where: str) -> None:
        self.locking = locking
        self.where = where
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

    async def topic_is_old(self) -> None:
        """Wait until the one who passed it on sees the topic that the writer committed."""
        path = f"/v3/rooms/{quote(self.room_id)}/state/m.room.topic"
        while True:
            with suppress(Refused):
                if (await self.here.get(path))["topic"].startswith("old"):
                    return
            await asyncio.sleep(0.01)

    async def topics(self) -> list[str]:
        """Give what both workers say the topic is."""
        path = f"/v3/rooms/{quote(self.room_id)}/state/m.room.topic"
        return [(await client.get(path))["topic"] for client in (self.here, self.there)]

    async def begin(self) -> list[asyncio.Task[Any]]:
        """Give a state event that the writer has, and the message whose commit it waits for, if it does."""
        for number in range(_ATTEMPTS):
            # Who wrote there just now is asked to write again: a matter of some milliseconds.
            await self.there.send(self.room_id, f"just now {number}")
            await self.locking.execute("BEGIN; SELECT pos FROM log_head FOR UPDATE")
            begun: list[asyncio.Task[Any]] = []
            if self.where != COMMITTED:
                room_id = self.another if self.where == COMPUTED else self.room_id
                begun.append(asyncio.create_task(self.there.send(room_id, f"before {number}")))
                while not await self.locking.fetchval(_WAITING):
                    await asyncio.sleep(0.001)
            begun.insert(0, asyncio.create_task(self.put(f"old {number}")))
            for _ in range(20):
                if await self._is_there(len(begun)):
                    return begun
                await asyncio.sleep(0.005)
            await self.locking.execute("ROLLBACK")
            await asyncio.gather(*begun)
        raise AssertionError("nothing was passed on")

    async def _is_there(self, count: int) -> bool:
        now = await figures(self.writer)
        if now[IN_FLIGHT] <= count:  # this question is one, too
            return False
        if self.where == COMMITTED:
            return bool(await self.locking.fetchval(_WAITING))
        return self.where == QUEUED_IN_ROOM or now[QUEUED] >= 1


@pytest.mark.parametrize("where", [COMMITTED, COMPUTED, QUEUED_IN_ROOM])
async def test_a_state_event_is_not_done_again_when_the_worker_it_was_passed_on_to_goes_on(
    where: str,
) -> None:
    """A topic (or a ban) would come back that was replaced since, as a worker stood still for a while.

    It would be done again by whoever passed it on, or by the worker itself when it goes on.
    """
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
                it = _PassedOn(cluster, writer, locking, where)
                for client in (it.here, it.there):
                    await stack.enter_async_context(client)
                await it.gather()
                passed_on, *before = await it.begin()
                await asyncio.sleep(0.1)  # for what figures do not tell: the room's queue, and what is sent
                os.kill(pid, signal.SIGSTOP)
                try:
                    await locking.execute("ROLLBACK")
                    async with asyncio.timeout(20):
                        if where == COMMITTED:
                            await it.topic_is_old()
                            await it.put("new")
                        with suppress(Unavailable):
                            await passed_on
                        if where != COMMITTED:
                            await it.put("new")
                finally:
                    os.kill(pid, signal.SIGCONT)
                async with asyncio.timeout(20):
                    await asyncio.gather(*before)
                    while (await figures(it.writer))[IN_FLIGHT] > 1:
                        await asyncio.sleep(0.01)
                assert await it.topics() == ["new", "new"]
        finally:
            await cluster.stop()


@pytest.mark.parametrize("is_writer", [True, False])
async def test_what_lay_in_a_socket_of_a_worker_that_stood_still_does_not_undo_what_is_newer(
    is_writer: bool,
) -> None:
    """A topic (or a ban) would come back that was replaced since: its client has asked another worker."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 2)
        try:
            await cluster.start()
            workers = await cluster.workers()
            stopped = next(name for name, it in workers.items() if it["takes_rooms"] == is_writer)
            (other,) = workers.keys() - {stopped}
            async with AsyncExitStack() as stack:
                there, here = [
                    await stack.enter_async_context(HoppingClient([cluster.worker_socket(name)]))
                    for name in (stopped, other)
                ]
                await here.register()
                there.token = here.token
                path = f"/v3/rooms/{quote(await here.create_room())}/state/m.room.topic"
                await there.put(path, {"topic": "first"})
                pid = workers[stopped]["pid"]
                os.kill(pid, signal.SIGSTOP)
                try:
                    late = asyncio.create_task(there.put(path, {"topic": "old"}))
                    # It must stand still for long: what is shorter is none.
                    await asyncio.sleep(LONGEST_S + 0.5)
                    async with asyncio.timeout(20):
                        await here.put(path, {"topic": "new"})
                finally:
                    os.kill(pid, signal.SIGCONT)
                async with asyncio.timeout(20):
                    with pytest.raises(Unavailable):
                        await late
                    assert [(await it.get(path))["topic"] for it in (here, there)] == ["new", "new"]
        finally:
            await cluster.stop()


def test_a_drained_worker_that_stood_still_gives_nothing_away_that_may_come_too_late() -> None:
    """A topic (or a ban) would come back that was replaced since: the next worker takes it for new."""
    now = Now()
    successor = Successors(Machine("a", "b").members, Standstill(int, now.clock))
    request = b"PUT /_matrix/client/v3/rooms/!room:test/state/m.room.topic HTTP/1.1\r\n\r\n"
    assert successor(request) == "b"
    now.forward_s = 10.0
    assert successor(request) is None
    now.forward_s = 11.0
    assert successor(request) == "b"
