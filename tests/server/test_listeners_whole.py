"""Where a whole server answers, what it says of itself, and what it writes into its log."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.postgres import private_folder
from tests.server.administrator import PASSWORD, metrics, until_metric, user_of
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess, free_port

VERSIONS = "/_matrix/client/versions"


@dataclass(frozen=True)
class Listening:
    """A server with a listener of each kind."""

    server: ServerProcess
    socket: Path
    certificate: Path
    tls_port: int
    metrics_port: int
    proxied_port: int


def make_certificate(folder: Path) -> None:
    """Make a self-signed certificate for localhost."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    make += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(make, check=True, capture_output=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listening() -> AsyncIterator[Listening]:
    """Give one server for all tests here."""
    with private_folder() as folder:
        await asyncio.to_thread(make_certificate, folder)
        port, *others = (free_port() for _ in range(4))
        server = ServerProcess(folder, _settings(folder, port, others))
        server.port = port
        try:
            await server.start()
            yield Listening(server, folder / "client.sock", folder / "cert.pem", *others)
        finally:
            await server.stop()


def _settings(folder: Path, port: int, ports: list[int]) -> dict[str, Any]:
    local = {"type": "http", "bind_addresses": ["127.0.0.1"]}
    everything = [{"names": ["client", "health", "metrics"]}]
    client = [{"names": ["client"]}]
    return {
        "allow_access_token_in_query": True,
        "tls_certificate_path": str(folder / "cert.pem"),
        "tls_private_key_path": str(folder / "key.pem"),
        "listeners": [
            {**local, "port": port, "resources": everything},
            {"path": str(folder / "client.sock"), "mode": "0660", "resources": client},
            {**local, "port": ports[0], "tls": True, "resources": client},
            {"type": "metrics", "bind_addresses": ["127.0.0.1"], "port": ports[1]},
            {**local, "port": ports[2], "x_forwarded": True, "resources": client},
        ],
    }


@asynccontextmanager
async def asked(
    url: str, connector: aiohttp.BaseConnector | None = None, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask once."""
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(url, headers=headers) as response,
    ):
        yield response


async def line_of(server: ServerProcess, mark: str) -> str:
    """Wait for the log line of the request that carries ``mark`` in its query."""
    async with asyncio.timeout(10):
        while True:
            for line in server.log.splitlines():
                if mark in line and " id=" in line:
                    return line
            await asyncio.sleep(0.02)


async def test_the_socket_for_a_proxy(listening: Listening) -> None:
    """A proxy in the right group could not connect, or everybody on the machine could."""
    assert stat.S_IMODE(listening.socket.stat().st_mode) == 0o660
    connector = aiohttp.UnixConnector(str(listening.socket))
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with asked(f"http://ranvier{VERSIONS}?mark=unix", connector, **headers) as answer:
        assert answer.status == 200
    assert "ip=203.0.113.7" in await line_of(listening.server, "mark=unix")


async def test_tls(listening: Listening) -> None:
    """A server without a proxy would send passwords in clear."""
    context = ssl.create_default_context(cafile=str(listening.certificate))
    connector = aiohttp.TCPConnector(ssl=context)
    async with asked(f"https://localhost:{listening.tls_port}{VERSIONS}", connector) as answer:
        assert "v1.11" in (await answer.json())["versions"]
    with pytest.raises(aiohttp.ClientError):
        async with asked(f"http://127.0.0.1:{listening.tls_port}{VERSIONS}"):
            pass


async def test_a_proxy_is_believed_only_where_the_configuration_says_so(listening: Listening) -> None:
    """Anybody could pretend to be somebody else, and slip by the limits on passwords."""
    header = {"X-Forwarded-For": "203.0.113.8"}
    async with asked(f"http://127.0.0.1:{listening.proxied_port}{VERSIONS}?mark=proxied", **header):
        assert "ip=203.0.113.8" in await line_of(listening.server, "mark=proxied")
    async with asked(f"{listening.server.url}{VERSIONS}?mark=direct", **header):
        assert "ip=127.0.0.1" in await line_of(listening.server, "mark=direct")


async def logged(server: ServerProcess, text: str) -> None:
    """Wait until something was written into its log."""
    async with asyncio.timeout(20):
        while text not in server.log:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
async def test_a_server_that_a_second_file_names_answers_where_the_first_says(
    options: tuple[str, ...],
) -> None:
    """`ranvier up` would say where clients reach it, and answer nobody there."""
    with private_folder() as folder:
        (folder / "name.yaml").write_text("worker_name: m2\n")
        arguments = ("--config", str(folder / "name.yaml"), *options)
        server = ServerProcess(folder, arguments=arguments)
        other = free_port()
        moved = ServerProcess(folder, server.config, arguments=(*arguments, "--port", str(other)))
        moved.port = other
        for it in (moved, server):
            try:
                await it.start()
                await logged(it, f"Clients reach it at:  {it.url.replace('127.0.0.1', 'localhost')}\n")
                os.kill(it.pid, signal.SIGHUP)
                await logged(it, "Read the configuration again")
            finally:
                await it.stop()
            assert "takes effect after a restart" not in it.log
            (folder / "server.log").unlink()


async def test_each_listener_serves_what_it_is_for(listening: Listening) -> None:
    """The numbers of a server would be open to the world, or the API on a port that was not meant for it."""
    for_metrics = f"http://127.0.0.1:{listening.metrics_port}"
    for url, status in (
        (f"{for_metrics}/metrics", 200),
        (f"{for_metrics}/health", 200),
        (f"{for_metrics}{VERSIONS}", 404),
        (f"http://127.0.0.1:{listening.proxied_port}/metrics", 404),
        (f"http://127.0.0.1:{listening.proxied_port}/health", 200),
        (f"{listening.server.url}/health", 200),
    ):
        async with asked(url) as answer:
            assert (url, answer.status) == (url, status)
            assert not url.endswith("/health") or int(answer.headers["Ranvier-Behind-Rows"]) >= 0


async def test_what_prometheus_is_told(listening: Listening) -> None:
    """Nobody would see that a server falls behind, fills its memory or runs out of connections."""
    server = listening.server
    before = await metrics(server.url)
    async with await user_of(server, "measured") as user:
        room_id = await user.create_room()
        for number in range(5):
            await user.send(room_id, str(number))
        poll = asyncio.create_task(user.sync((await user.sync())["next_batch"], timeout_ms=20_000))
        await until_metric(server, "ranvier_sync_waiting", 1)
        after = await metrics(server.url)
        await user.send(room_id, "the end")
        await poll
    assert after["ranvier_log_position"] >= before["ranvier_log_position"] + 5
    assert after["ranvier_log_commits_total"] >= before["ranvier_log_commits_total"] + 6
    assert after["ranvier_log_batch_rows_count"] == after["ranvier_log_commits_total"]
    assert after["ranvier_http_requests_total"] >= before["ranvier_http_requests_total"] + 8
    assert after["ranvier_log_behind_rows"] == 0
    assert after["ranvier_rooms_held"] >= 1
    assert after["ranvier_rooms_state_held"] >= 5
    assert 0 < after["ranvier_tail_rows"] <= after["ranvier_log_position"]
    assert after["ranvier_tail_bytes"] > after["ranvier_tail_rows"]
    assert 1 <= after["ranvier_database_connections"] <= 10
    assert after["ranvier_database_reachable"] == 1
    assert after["process_resident_memory_bytes"] > 10_000_000


async def test_a_requests_log_line(listening: Listening) -> None:
    """An administrator could not tell who asked for what, and where the time went."""
    async with await user_of(listening.server, "logged") as user:
        await user.get("/v3/account/whoami", mark="line")
        line = await line_of(listening.server, "mark=line")
    assert re.search(
        r"GET /_matrix/client/v3/account/whoami\?mark=line 200 \d+B [\d.]+ms db=[\d.]+ms "
        rf"user={re.escape(user.user_id)} ip=127\.0\.0\.1 id=\w+$",
        line,
    ), line


async def test_no_secret_is_in_the_log(listening: Listening) -> None:
    """Whoever reads the log, or gets it in a bug report, could log in as everybody."""
    server = listening.server
    async with await user_of(server, "secretive") as user, HttpClient(server.url) as nobody:
        assert user.token is not None
        await user.get("/v3/account/whoami", mark="header")
        await nobody.get("/v3/account/whoami", access_token=user.token, mark="query")
        login = await nobody.login("secretive", PASSWORD)
        await login.get("/v3/account/whoami", mark="last")
        await line_of(server, "mark=last")
        assert login.token is not None
        assert user.token not in server.log
        assert login.token not in server.log
        assert PASSWORD not in server.log
        assert PASSWORD.replace(" ", "%20") not in server.log
        assert "access_token=<redacted>" in server.log
