"""``ranvier up --workers`` as its administrator's signals find it, at whatever moment they come."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ranvier.cluster.head_board import PLACES
from ranvier.http.listeners import UnixAddress, unix_socket
from ranvier.processes.supervisor import Sizes
from tests.chaos.processes import catches, children
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import SYNC_WAITING, figures
from tests.cluster.log_lock import connection_of, log_locked
from tests.cluster.test_up_beside import logged
from tests.cluster.test_worker_life import restarts
from tests.postgres import private_folder
from tests.redis import until
from tests.server.http_client import HttpClient, Refused
from tests.server.test_life import is_alive, postgres_pid

FEW = {"per_second": 0.001, "burst_count": 20}


@pytest.fixture
async def server() -> AsyncIterator[ClusterProcess]:
    """Give a server of two workers that is not started yet and says only what is wrong."""
    with private_folder() as folder:
        server = ClusterProcess(folder, 2, {"log_level": "WARNING"})
        try:
            yield server
        finally:
            await server.stop()


@asynccontextmanager
async def half_a_request(path: Path) -> AsyncIterator[None]:
    """Begin a request to a worker and do not finish it."""
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /_matrix/client/v3/register HTTP/1.1\r\nHost: w\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    try:
        yield
    finally:
        writer.close()


async def ask_until_done(server: ClusterProcess, work: asyncio.Task[object]) -> int:
    """Send SIGHUP again and again until something is done; give how often."""
    times = 0
    while not work.done():
        os.kill(server.pid, signal.SIGHUP)
        times += 1
        await asyncio.sleep(0.05)
    await work
    return times


async def until_it_hears(server: ClusterProcess) -> None:
    """Wait until a server that is being started hears signals, and writes a log."""
    await until((server.folder / "data" / "postgres" / "lock").exists, 30)


@contextmanager
def held(server: ClusterProcess, name: str) -> Iterator[Path]:
    """Keep a worker of a server that is not started yet from its socket, as one of before does."""
    folder = server.folder / "data" / "run"
    folder.parent.mkdir(mode=0o711)
    folder.mkdir(mode=0o700)
    path = folder / f"{name}.sock"
    with unix_socket(UnixAddress(path)) as sock:
        sock.listen()
        yield folder
        path.unlink()


async def test_one_worker_more_or_less_while_it_starts_holds_up_nothing(server: ClusterProcess) -> None:
    """A server that is told just then to add or remove a worker would stand still, and hear nothing else."""
    refusal = "No worker is added or removed"
    with held(server, "worker2"):
        starting: asyncio.Task[object] = asyncio.create_task(server.start())
        await until_it_hears(server)
        os.kill(server.pid, signal.SIGTTIN)
        await logged(server, refusal)
        async with HttpClient(server.url) as client, asyncio.timeout(30):
            while not await client.is_up():  # then one of the two serves
                await asyncio.sleep(0.02)
        os.kill(server.pid, signal.SIGTTOU)
        await logged(server, refusal, 2)
    await starting
    await logged(server, "Clients reach it at")
    os.kill(server.pid, signal.SIGTTIN)
    await server.wait_live(3)


async def test_a_worker_is_restarted_while_others_start(server: ClusterProcess) -> None:
    """A click on Restart while a large server starts would end all of it, for a reason that is not so."""
    server.write_config(log_level="INFO", drain_timeout="60s")  # so long worker2 waits for its socket
    with held(server, "worker2"):
        starting: asyncio.Task[object] = asyncio.create_task(server.start())
        async with asyncio.timeout(60):
            while not await restarts(server.worker_socket("worker1"), "worker1"):
                await asyncio.sleep(0.05)
        await until(lambda: "worker1 ended (status 75)" in server.log, 30)
    await starting
    await logged(server, "Clients reach it at")


async def test_a_reload_while_it_starts_ends_nothing_and_ctrl_c_ends_all(server: ClusterProcess) -> None:
    """A server that is told just then that its certificate is new would not start, or lose a worker.

    Ctrl-C, which a terminal sends to all processes, would break requests off or leave a process running.
    """
    starting: asyncio.Task[object] = asyncio.create_task(server.start())
    await until_it_hears(server)
    assert await ask_until_done(server, starting) > 1
    assert "ended" not in server.log
    redis = int((server.folder / "data" / "redis" / "redis.pid").read_text())
    pids = [postgres_pid(server), redis, *(it["pid"] for it in (await server.workers()).values())]
    await ctrl_c(server)
    assert [pid for pid in pids if pid is None or is_alive(pid)] == []
    assert "ended" not in server.log
    assert "Traceback" not in server.log


async def ctrl_c(server: ClusterProcess) -> None:
    """Interrupt a server, with all its processes as a terminal does; what is under way is answered."""
    async with AsyncExitStack() as stack:
        polls = []
        for _ in range(6):
            client = await stack.enter_async_context(HttpClient(server.url))
            await client.register()
            room_id = await client.create_room()
            since = (await client.sync())["next_batch"]
            polls.append(asyncio.create_task(client.sync(since, 30_000)))
        async with connection_of(server) as connection, asyncio.timeout(20), log_locked(connection):
            sending = asyncio.create_task(client.send(room_id, "begun"))
            while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.05)
            while await waiting(server) < len(polls):
                await asyncio.sleep(0.05)
            os.killpg(server.pid, signal.SIGINT)
            assert all("next_batch" in answer for answer in await asyncio.gather(*polls))
        assert await sending
    assert await server.wait() == 0


async def waiting(server: ClusterProcess) -> float:
    """Give how many syncs wait at its workers."""
    sockets = [server.worker_socket(f"worker{number}") for number in range(1, server.count + 1)]
    return sum([(await figures(socket))[SYNC_WAITING] for socket in sockets])


async def test_a_reload_while_a_worker_starts_ends_nothing(server: ClusterProcess) -> None:
    """A worker that was just being started again would be ended by a reload, and start once more.

    Ctrl-C, which a terminal sends to all processes, would end it with a page of traceback.
    """
    await server.start()
    pids = [await server.kill_worker(name) for name in ("worker1", "worker2")]
    coming: asyncio.Task[object] = asyncio.create_task(server.wait_live(2, pids))
    await logged(server, "starting it again", 2)
    assert await ask_until_done(server, coming) > 1
    assert server.log.count("starting it again") == 2
    async with HttpClient(server.url) as client:
        await client.register()
    pid = await server.kill_worker("worker1")
    async with asyncio.timeout(20):
        while True:
            found = children(server.pid, b"ranvier.app.worker")
            if len(found) == 2 and pid not in found and all(catches(it, signal.SIGINT) for it in found):
                break
            await asyncio.sleep(0.01)
    os.killpg(server.pid, signal.SIGINT)
    assert await server.wait() == 0
    assert "Traceback" not in server.log


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


async def test_no_worker_is_added_while_all_stop(server: ClusterProcess) -> None:
    """A server that was told just then to add a worker would never end, and hear nothing but kill -9."""
    await server.start()
    async with half_a_request(server.worker_socket("worker1")):
        os.kill(server.pid, signal.SIGTERM)
        async with asyncio.timeout(30):
            while server.worker_socket("worker2").exists():
                await asyncio.sleep(0.02)
        for signum in (signal.SIGTTIN, signal.SIGTTOU):
            os.kill(server.pid, signum)
        assert await server.stop() == 0
    assert "Traceback" not in server.log


async def test_a_server_whose_front_was_killed_starts_at_once(server: ClusterProcess) -> None:
    """After a crash it would not start while a worker of before waits for a client that is slow."""
    server.write_config(drain_timeout="30s")
    await server.start()
    async with half_a_request(server.worker_socket("worker1")):
        server.kill()
        await server.start()
        async with HttpClient(server.url) as client:
            await client.register()


async def test_a_start_waits_for_workers_of_before_and_says_so(server: ClusterProcess) -> None:
    """After a crash a server of many workers would not start; or stand there, and nobody would know why."""
    with held(server, "worker2") as folder:
        with (folder / "heads").open("wb") as board:
            fcntl.lockf(board, fcntl.LOCK_EX, PLACES)
            starting = asyncio.create_task(server.start())
            await until_it_hears(server)
            await until(lambda: server.log.count("share a folder already; waiting up to 15 s") == 2, 30)
        await until(lambda: "worker2.sock: another process answers there; waiting" in server.log, 30)
    await starting


@pytest.mark.parametrize("count", range(1, 65))
def test_postgres_has_connections_for_as_many_workers_as_there_may_be(count: int) -> None:
    """Where workers were many, or some were added, requests would get 503, or the server would not start."""
    sizes = Sizes.of(count, None)
    assert count <= sizes.most_workers <= PLACES
    assert sizes.connections_each >= 2
    # Three are PostgreSQL's for its own superuser, and others are for commands beside the server.
    assert sizes.most_workers * sizes.connections_each + 3 + 2 <= sizes.max_connections
    assert sizes.most_workers > count or count == PLACES


async def test_all_processes_read_settings_again_and_what_is_wrong_is_said_once(
    server: ClusterProcess,
) -> None:
    """An administrator would read the same mistake from each worker, or miss what the front says.

    And a limit, the new one here, would be one for each worker: passwords could be guessed so much faster.
    """
    await server.start()
    server.write_config(log_level="LOUD")
    os.kill(server.pid, signal.SIGHUP)
    await logged(server, "the old one stays")
    server.write_config(log_level="INFO", rc_login={**server.config["rc_login"], "address": FEW})
    os.kill(server.pid, signal.SIGHUP)
    await logged(server, "Read the configuration again", 3)
    for process in ("front", "worker1", "worker2"):
        assert f"[{process}] ranvier.processes.life: Read the configuration again" in server.log
    assert server.log.count("the old one stays") == 1
    assert FEW["burst_count"] <= await guesses(server) < 1.5 * FEW["burst_count"]


async def guesses(server: ClusterProcess) -> int:
    """Guess passwords at one worker until it takes no more, then at the other; give how many both took."""
    identifier = {"type": "m.id.user", "user": "nobody"}
    guess = {"type": "m.login.password", "identifier": identifier, "password": "a guess"}
    count = 0
    for name in ("worker1", "worker2"):
        async with HoppingClient([server.worker_socket(name)]) as client:
            while True:
                with pytest.raises(Refused) as refused:
                    await client.post("/v3/login", guess)
                if refused.value.errcode == "M_LIMIT_EXCEEDED":
                    break
                assert refused.value.errcode == "M_FORBIDDEN"
                count += 1
                await asyncio.sleep(0.05)  # others hear of it a little later
    return count
