"""The listeners of ``ranvier up --workers``: what the front opened is what every worker answers at."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from ranvier.config import load
from ranvier.config.listeners import DEFAULT_LISTENER
from ranvier.processes import front_protocol
from ranvier.processes.life import receive_plan
from ranvier.processes.start_error import StartError
from ranvier.processes.worker import with_listeners
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.postgres import private_folder
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess, free_port

STATUS = "/_ranvier/api/status"


@asynccontextmanager
async def cluster_of_two() -> AsyncIterator[ClusterProcess]:
    """Run a front and two workers."""
    with private_folder() as folder:
        server = ClusterProcess(folder, 2)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


async def statuses(server: ServerProcess, times: int = 12) -> set[int]:
    """Ask for what only administrators may see, without a token, each time on a new connection."""
    found = set()
    for _ in range(times):
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(
                server.url + STATUS, headers={"X-Ranvier-Console": "1", "Host": "localhost"}
            ) as answer,
        ):
            found.add(answer.status)
    return found


async def start_workers_again(server: ClusterProcess) -> None:
    """Kill each worker and wait for its successor."""
    for name in ("worker1", "worker2"):
        pid = await server.kill_worker(name)
        await server.wait_live(2, [pid])


def path_listener(folder: Path, *names: str) -> dict[str, Any]:
    """Give the configuration of a UNIX socket."""
    return {"type": "http", "path": str(folder / "extra.sock"), "resources": [{"names": list(names)}]}


async def test_a_port_stays_what_it_was_when_the_configuration_has_another_listener_before_it() -> None:
    """Everybody at the public port could restart workers once one was started with the new configuration."""
    async with cluster_of_two() as server:
        assert await statuses(server) == {401}
        public = server.config["listeners"]
        server.write_config(listeners=[path_listener(server.folder, "console"), *public])
        await start_workers_again(server)
        assert await statuses(server) == {401}
        async with HttpClient(server.url) as client:
            await client.register()


async def test_a_port_answers_though_the_configuration_has_it_no_more() -> None:
    """Connections would be taken and never answered when a worker was started with the new configuration."""
    async with cluster_of_two() as server:
        server.write_config(listeners=[])
        await start_workers_again(server)
        async with asyncio.timeout(20):
            assert await statuses(server) == {401}
        async with HttpClient(server.url) as client:
            await client.register()


async def test_each_answer_says_whose_figures_it_has() -> None:
    """A Prometheus would take what one worker has counted, and then another, for a counter that was reset."""
    names = set()
    async with cluster_of_two() as server:
        for _ in range(32):
            connector = aiohttp.TCPConnector(force_close=True)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(f"{server.url}/metrics") as answer,
            ):
                names.update(re.findall(r'^ranvier_worker_info\{name="(.*)"\} 1', await answer.text(), re.M))
    assert names == {"worker1", "worker2"}


async def test_the_port_option_is_for_all_workers() -> None:
    """Who has only a socket in the configuration and tries a port would get no answer there."""
    with private_folder() as folder:
        port = free_port()
        settings = {"listeners": [path_listener(folder, "client")]}
        server = ServerProcess(folder, settings, ["--workers", "2", "--port", str(port)])
        server.port = port
        try:
            await server.start()
            async with HttpClient(server.url) as client, HoppingClient([folder / "extra.sock"]) as other:
                await client.register()
                other.token = client.token
                assert (await other.get("/v3/account/whoami"))["user_id"] == client.user_id
        finally:
            await server.stop()


async def test_a_listener_for_other_workers_does_not_keep_it_from_starting() -> None:
    """Who has a listener for replication could not start several workers by one command."""
    with private_folder() as folder:
        server = ClusterProcess(folder, 2)
        local = {"type": "http", "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["replication"]}]}
        port = free_port()
        server.config["listeners"].append(local | {"port": port})
        server.config["worker_listeners"] = [local | {"port": free_port()}]
        server.write_config()
        try:
            await server.start()
            assert server.log.count(f"No replication at port {port}: ") == 1
            assert server.log.count("worker_listeners have no effect with --workers") == 1
            async with HttpClient(server.url) as client:
                await client.register()
        finally:
            await server.stop()


async def test_a_worker_that_cannot_have_the_fronts_listeners_says_why(tmp_path: Path) -> None:
    """A worker would end with a traceback again and again after an upgrade, or a change of its files."""
    ours, theirs = front_protocol.make_pair()
    with ours, theirs:
        assert ours.send(msgspec.msgpack.encode({"type": "plan", "name": "a", "dsn": "", "redis": {}}))
        with pytest.raises(StartError, match="of another release"):
            receive_plan(theirs)
    (tmp_path / "homeserver.yaml").write_text("server_name: example.org\n")
    config = load([tmp_path / "homeserver.yaml"])
    with pytest.raises(StartError, match="no certificate any more"):
        with_listeners(config, (replace(DEFAULT_LISTENER, tls=True),))
