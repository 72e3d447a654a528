"""A worker as its service manager and its administrator see it: started, reloaded, drained."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from ranvier.cluster.overview import API
from ranvier.config import Config
from ranvier.processes.life import read_configuration
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.services import Notifications
from tests.server.http_client import Refused
from tests.server.process import ServerProcess


class Worker:
    """Run ``python -m ranvier.app.worker`` as a unit file does, and hear its notifications."""

    def __init__(self, server: ServerProcess, name: str, more: str = "") -> None:
        self.folder = server.folder
        self.socket = self.folder / f"{name}.sock"
        self.config = self.folder / "workers" / f"{name}.yaml"
        for folder in ("workers", "conf.d"):
            (self.folder / folder).mkdir(exist_ok=True)
        self.name = name
        self.write_config(more)
        self._notifications = Notifications(self.folder / f"{name}.notify")
        self.log_path = self.folder / f"{name}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ranvier.app.worker", "--data", str(self.folder / "data")),
                    f"--config-path={self.folder / 'homeserver.yaml'}",
                    f"--config-path={self.folder / 'conf.d'}/",
                    f"--config-path={self.config}",
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._notifications.environment},
            )

    def write_config(self, more: str) -> None:
        """Write the worker's own file."""
        resources = "[{names: [client, health]}]"
        listener = f'{{type: http, path: "{self.socket}", mode: 0660, resources: {resources}}}'
        listeners = "" if "worker_listeners" in more else f"worker_listeners: [{listener}]\n"
        self.config.write_text(f"worker_name: {self.name}\n{listeners}{more}\n")

    async def hear(self, wanted: str) -> None:
        """Wait for a notification."""
        await self._notifications.hear(wanted)

    async def logged(self, text: str) -> None:
        """Wait for a line in its log."""
        async with asyncio.timeout(10):
            while text not in self.log_path.read_text():
                await asyncio.sleep(0.05)

    async def end(self) -> int:
        """Wait for its end and give its exit status."""
        return await asyncio.to_thread(self.process.wait, 30)

    def close(self) -> None:
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        self._notifications.close()
        self.config.unlink(missing_ok=True)


@contextmanager
def running(server: ServerProcess, name: str, more: str = "") -> Iterator[Worker]:
    """Run a worker beside a running server, with more lines of configuration."""
    worker = Worker(server, name, more)
    try:
        yield worker
    finally:
        worker.close()


async def test_the_service_manager_is_told_of_a_life(cluster: ClusterProcess) -> None:
    """systemd would send requests too early, kill a healthy worker, or not know that a reload is done."""
    with running(cluster, "life") as worker:
        await worker.hear("READY=1")
        assert worker.socket.stat().st_mode & 0o777 == 0o660
        async with HoppingClient([worker.socket]) as client:
            await client.get("/versions")
        await worker.hear("WATCHDOG=1")
        worker.process.send_signal(signal.SIGHUP)
        await worker.hear("RELOADING=1")
        await worker.hear("READY=1")
        worker.process.terminate()
        await worker.hear("STOPPING=1")
        assert await worker.end() == 0
        assert not worker.socket.exists()


async def test_a_worker_that_can_open_no_more_files_says_that_it_lives(cluster: ClusterProcess) -> None:
    """systemd would kill a worker that serves, with all who are connected, for the want of one file."""
    with running(cluster, "files") as worker:
        await worker.hear("READY=1")
        pid = worker.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        worker.process.send_signal(signal.SIGHUP)
        await worker.hear("RELOADING=1")
        await worker.hear("READY=1")
        await worker.hear("WATCHDOG=1")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        worker.process.terminate()
        assert await worker.end() == 0


async def test_a_reload_changes_what_can_change_and_refuses_what_is_wrong(cluster: ClusterProcess) -> None:
    """An administrator would restart everything for a new limit, or lose the server by a slip of the pen."""
    with running(cluster, "reload") as worker:
        await worker.hear("READY=1")
        async with HoppingClient([worker.socket]) as client:
            await client.register()
            worker.write_config(
                "rc_room_creation: {per_second: 0.001, burst_count: 1}\nworker_roles: [client]"
            )
            worker.process.send_signal(signal.SIGHUP)
            await worker.logged("Read the configuration again")
            await client.create_room()
            with pytest.raises(Refused) as refused:
                await client.create_room()
            assert refused.value.errcode == "M_LIMIT_EXCEEDED"
            async with asyncio.timeout(10):
                while list((await cluster.workers())["reload"]["roles"]) != ["client"]:
                    await asyncio.sleep(0.1)
            worker.write_config("worker_roles: [king]")
            worker.process.send_signal(signal.SIGHUP)
            await worker.logged("the old one stays")
            with pytest.raises(Refused) as refused:
                await client.create_room()
            assert refused.value.errcode == "M_LIMIT_EXCEEDED"
        worker.process.terminate()
        assert await worker.end() == 0


async def test_files_and_folders_go_over_each_other_as_in_classic_unit_files(cluster: ClusterProcess) -> None:
    """Whoever changed one line of a unit file would find half of the configuration unread."""
    shared = cluster.folder / "conf.d" / "10-roles.yaml"
    shared.parent.mkdir(exist_ok=True)
    shared.write_text("worker_roles: [media]\nworker_name: nobody\n")
    try:
        with running(cluster, "classic") as worker:
            await worker.hear("READY=1")
            assert (await cluster.workers())["classic"]["roles"] == ("media",)
            worker.process.terminate()
            assert await worker.end() == 0
    finally:
        shared.unlink()


@pytest.mark.parametrize("listeners", ["null", "[]"])
async def test_a_worker_that_listens_nowhere_does_its_part(cluster: ClusterProcess, listeners: str) -> None:
    """A background worker with its classic file would take the first worker's port, or never start."""
    with running(cluster, "background", f"worker_listeners: {listeners}") as worker:
        await worker.hear("READY=1")
        assert "background" in await cluster.workers()
        assert not worker.socket.exists()
        assert worker.log_path.read_text().count("Listening on") == 1  # where it alone is asked
        worker.process.terminate()
        assert await worker.end() == 0


async def test_a_worker_is_sent_only_what_its_roles_say(own_cluster: ClusterProcess) -> None:
    """A worker that is kept for one thing would be given everything else as well."""
    with running(own_cluster, "roles", "worker_roles: [sync]") as worker:
        await worker.hear("READY=1")

        async def answered() -> int:
            """Give how many requests it has answered, once it has told of all."""
            beat = (await own_cluster.workers())["roles"]["beat"]
            async with asyncio.timeout(10):
                while (told := (await own_cluster.workers())["roles"])["beat"] < beat + 2:
                    await asyncio.sleep(0.1)
            requests: int = told["requests"]
            return requests

        async with HoppingClient([own_cluster.worker_socket("worker1")]) as client:
            await client.register()
            for _ in range(20):
                await client.send(await client.create_room(), "hello")
            assert await answered() == 0
            worker.write_config("worker_roles: [client]")
            worker.process.send_signal(signal.SIGHUP)
            await worker.logged("Read the configuration again")
            assert await answered() == 0  # until all have heard of it
            for _ in range(50):
                await client.send(await client.create_room(), "hello")
            assert await answered() > 0
        worker.process.terminate()
        assert await worker.end() == 0


async def test_draining_answers_those_who_wait(cluster: ClusterProcess) -> None:
    """Clients that wait for news would see their connection break when a worker is restarted."""
    with running(cluster, "drain") as worker:
        await worker.hear("READY=1")
        async with HoppingClient([worker.socket]) as client:
            await client.register()
            since = (await client.sync())["next_batch"]
            waiting = [asyncio.create_task(client.sync(since, 25_000)) for _ in range(5)]
            async with asyncio.timeout(10), HoppingClient([cluster.worker_socket("worker1")]) as other:
                other.token = client.token
                while (await cluster.workers())["drain"]["requests"] < 2:
                    await asyncio.sleep(0.1)
                worker.process.terminate()
                for answer in await asyncio.gather(*waiting):
                    assert answer["next_batch"]
                assert await worker.end() == 0
                assert (await other.get("/v3/account/whoami"))["user_id"] == client.user_id


async def test_draining_takes_no_longer_than_configured(cluster: ClusterProcess) -> None:
    """One client that never finishes what it sends would hold up every restart of its worker."""
    with running(cluster, "slow", "drain_timeout: 2s") as worker:
        await worker.hear("READY=1")
        async with HoppingClient([worker.socket]) as client:
            await client.register()
            reader, writer = await asyncio.open_unix_connection(str(worker.socket))
            writer.write(
                b"POST /_matrix/client/v3/createRoom HTTP/1.1\r\nHost: worker\r\nContent-Length: 1000\r\n"
                b"Authorization: Bearer " + (client.token or "").encode() + b"\r\n\r\n{"
            )
            await writer.drain()
            await asyncio.sleep(0.5)
            begun = time.monotonic()
            worker.process.terminate()
            assert await worker.end() == 0
            assert time.monotonic() - begun < 2 + 3
            assert b" 200 " not in await reader.read()
            writer.close()


async def test_a_worker_is_restarted_no_earlier_than_it_serves(cluster: ClusterProcess) -> None:
    """A click on Restart while a worker starts would end it for good, and the server that starts with it."""
    private = cluster.worker_socket("hasty")
    with running(cluster, "hasty") as worker:
        async with asyncio.timeout(30):
            while not await restarts(private, "hasty"):
                await asyncio.sleep(0)
        assert await worker.end() == os.EX_TEMPFAIL


async def restarts(private: Path, name: str) -> bool:
    """Ask a worker to restart, as the page does; False if it does not, or not yet."""
    connector, guard = aiohttp.UnixConnector(str(private)), {"X-Ranvier-Console": "1"}
    try:
        async with (
            aiohttp.ClientSession(connector=connector, headers=guard) as session,
            session.post(f"http://localhost{API}/workers/{name}/restart", json={}) as response,
        ):
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def test_two_workers_of_one_name_are_told(cluster: ClusterProcess) -> None:
    """Two workers would take turns under one name, and nobody would know why requests fail."""
    with running(cluster, "twin") as worker:
        await worker.hear("READY=1")
        status = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "ranvier.app.worker", "--data", str(cluster.folder / "data")),
                *("--config-path", str(cluster.folder / "homeserver.yaml"), "--name", "twin"),
            ],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert status.returncode == 1
        assert b"another worker named twin is running here; each needs a worker_name" in status.stderr
        assert b"Traceback" not in status.stderr
        worker.process.terminate()
        assert await worker.end() == 0


async def test_a_configuration_that_cannot_be_read_for_any_reason_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All workers would end at once because of a mistake in reading that nobody thought of."""

    def reload() -> Config:
        raise ZeroDivisionError("not thought of")

    await read_configuration(reload, lambda config: None)
    assert "the old one stays" in caplog.text
    assert "not thought of" in caplog.text
