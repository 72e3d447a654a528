"""``ranvier up --workers`` as its administrator's signals find it, at whatever moment they come."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator

import pytest

from tests.cluster.cluster_process import ClusterProcess
from tests.cluster.test_up_beside import logged
from tests.postgres import private_folder
from tests.server.http_client import HttpClient


@pytest.fixture
async def server() -> AsyncIterator[ClusterProcess]:
    """Give a server of two workers that is not started yet and says only what is wrong."""
    with private_folder() as folder:
        server = ClusterProcess(folder, 2, {"log_level": "WARNING"})
        try:
            yield server
        finally:
            await server.stop()


async def ask_until_done(server: ClusterProcess, work: asyncio.Task[object]) -> int:
    """Send SIGHUP again and again until something is done; give how often."""
    times = 0
    while not work.done():
        os.kill(server.pid, signal.SIGHUP)
        times += 1
        await asyncio.sleep(0.05)
    await work
    return times


async def test_a_reload_while_it_starts_ends_nothing(server: ClusterProcess) -> None:
    """A server that is told just then that its certificate is new would not start, or lose a worker."""
    starting: asyncio.Task[object] = asyncio.create_task(server.start())
    lock = server.folder / "data" / "postgres" / "lock"
    async with asyncio.timeout(30):
        while not lock.exists():  # it hears signals by then
            await asyncio.sleep(0.01)
    assert await ask_until_done(server, starting) > 1
    assert "ended" not in server.log
    async with HttpClient(server.url) as client:
        await client.register()


async def test_a_reload_while_a_worker_starts_ends_nothing(server: ClusterProcess) -> None:
    """A worker that was just being started again would be ended by a reload, and start once more."""
    await server.start()
    pids = [await server.kill_worker(name) for name in ("worker1", "worker2")]
    coming: asyncio.Task[object] = asyncio.create_task(server.wait_live(2, pids))
    await logged(server, "starting it again", 2)
    assert await ask_until_done(server, coming) > 1
    assert server.log.count("starting it again") == 2
    async with HttpClient(server.url) as client:
        await client.register()


async def test_a_worker_that_cannot_be_started_at_once_is_started_later(server: ClusterProcess) -> None:
    """Where files or memory are short for a moment, the whole server would end for one worker."""
    await server.start()
    workers = await server.workers()
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    pid = await server.kill_worker("worker1")
    await logged(server, "could not be started", 2)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    await server.wait_live(2, [pid])
    assert (await server.workers())["worker2"]["pid"] == workers["worker2"]["pid"]


async def test_all_processes_read_settings_again_and_what_is_wrong_is_said_once(
    server: ClusterProcess,
) -> None:
    """An administrator would read the same mistake from each worker, or miss what the front says."""
    await server.start()
    server.write_config(log_level="LOUD")
    os.kill(server.pid, signal.SIGHUP)
    await logged(server, "the old one stays")
    server.write_config(log_level="INFO")
    os.kill(server.pid, signal.SIGHUP)
    await logged(server, "Read the configuration again", 3)
    for process in ("front", "worker1", "worker2"):
        assert f"[{process}] ranvier.processes.life: Read the configuration again" in server.log
    assert server.log.count("the old one stays") == 1
