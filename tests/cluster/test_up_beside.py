"""``ranvier up`` without ``--workers``: reloaded as a worker is, and one of several with a Redis."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.services import Notifications, services
from tests.cluster.test_worker_life import running
from tests.postgres import private_folder
from tests.server.http_client import HttpClient, Refused, bodies
from tests.server.process import ServerProcess, free_port
from tests.server.test_listeners_whole import make_certificate


@asynccontextmanager
async def watched(settings: dict[str, Any]) -> AsyncIterator[tuple[ServerProcess, Notifications]]:
    """Run ``ranvier up`` as a service manager does."""
    with private_folder() as folder:
        notifications = Notifications(folder / "notify")
        server = ServerProcess(folder, settings, environment=notifications.environment)
        try:
            yield server, notifications
        finally:
            await server.stop()
            notifications.close()


async def logged(server: ServerProcess, text: str, times: int = 1) -> None:
    """Wait until a line was logged so often."""
    async with asyncio.timeout(10):
        while server.log.count(text) < times:
            await asyncio.sleep(0.05)


async def test_the_service_manager_is_told_of_a_life() -> None:
    """systemd would send requests too early, kill a healthy server, or not know that a reload is done."""
    async with watched({}) as (server, notifications):
        await server.start()
        await notifications.hear("READY=1")
        await notifications.hear("WATCHDOG=1")
        for signum in (signal.SIGTTIN, signal.SIGTTOU):  # meant for a server of several workers
            os.kill(server.pid, signum)
        os.kill(server.pid, signal.SIGHUP)
        await notifications.hear("RELOADING=1")
        await notifications.hear("READY=1")
        assert await server.stop() == 0
        await notifications.hear("STOPPING=1")


async def test_a_server_of_workers_speaks_with_one_voice() -> None:
    """systemd would take what one worker or PostgreSQL says for the whole server, or warn of it for ever."""
    with private_folder() as folder:
        notifications = Notifications(folder / "notify")
        server = ClusterProcess(folder, 2, environment=notifications.environment)
        try:
            await server.start()
            await notifications.hear("READY=1")
            assert notifications.heard == ["READY=1"]
            await notifications.hear("WATCHDOG=1")
            os.kill(server.pid, signal.SIGHUP)
            await notifications.hear("RELOADING=1")
            await notifications.hear("STATUS=2 workers serve")
            assert await server.stop() == 0
            await notifications.hear("STOPPING=1")
            assert notifications.heard.count("STOPPING=1") == 1
        finally:
            await server.stop()
            notifications.close()


async def test_a_reload_changes_what_can_change_and_refuses_what_is_wrong() -> None:
    """An administrator would restart the server for a new limit, or lose it by a slip of the pen."""
    async with watched({}) as (server, _):
        await server.start()
        async with HttpClient(server.url) as client:
            await client.register()
            await client.create_room()
            few = {"per_second": 0.001, "burst_count": 1}
            server.write_config(rc_room_creation=few, log_level="WARNING", drain_timeout="7s")
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "takes effect after a restart (server)")
            await client.get("/versions", mark="unseen")
            await refused_to_create(client)
            for wrong in ({"server_name": "other.localhost"}, {"drain_timeout": "long"}, {"log_level": "?"}):
                before = server.log.count("the old one stays")
                server.write_config(**wrong)
                os.kill(server.pid, signal.SIGHUP)
                await logged(server, "the old one stays", before + 1)
                await refused_to_create(client)
            text = json.dumps(server.config)
            for broken in (
                "public_baseurl: 2024-02-30",
                'signing_key_path: "a\\0b"',
                "<<: 5",
                "a: " + "[" * 999,
            ):
                before = server.log.count("the old one stays")
                (server.folder / "homeserver.yaml").write_text(f"{text[:-1]}, {broken}}}")
                os.kill(server.pid, signal.SIGHUP)
                await logged(server, "the old one stays", before + 1)
                await refused_to_create(client)
            assert "Traceback" not in server.log
            server.write_config()
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "Read the configuration again")
            await client.create_room()
        assert "mark=unseen" not in server.log


async def refused_to_create(client: HttpClient) -> None:
    """Make rooms until that is too often for the configured limit."""
    codes = []
    for _ in range(3):
        try:
            await client.create_room()
        except Refused as refused:
            codes.append(refused.errcode)
    assert set(codes) == {"M_LIMIT_EXCEEDED"}


async def test_a_new_certificate_is_used_and_half_a_one_is_not() -> None:
    """A renewed certificate would need a restart; or a renewal that failed half way would end all service."""
    with private_folder() as folder:
        await asyncio.to_thread(make_certificate, folder)
        port, tls_port = free_port(), free_port()
        local = {"type": "http", "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]}
        settings = {
            "tls_certificate_path": str(folder / "cert.pem"),
            "tls_private_key_path": str(folder / "key.pem"),
            "listeners": [{**local, "port": port}, {**local, "port": tls_port, "tls": True}],
        }
        async with watched(settings) as (server, _):
            server.port = port
            await server.start()
            first = (folder / "cert.pem").read_text()
            await asyncio.to_thread(make_certificate, folder)
            second, key = (folder / "cert.pem").read_text(), (folder / "key.pem").read_text()
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "Read the configuration again")
            await versions_over_tls(tls_port, second)
            (folder / "cert.pem").write_text(first)
            os.kill(server.pid, signal.SIGHUP)
            await logged(server, "the old one stays")
            await versions_over_tls(tls_port, second)
            (folder / "cert.pem").write_text(second)
            (folder / "key.pem").write_text(key)


async def versions_over_tls(port: int, certificate: str) -> None:
    """Ask over TLS, trusting just one certificate."""
    context = ssl.create_default_context(cadata=certificate)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"https://localhost:{port}/_matrix/client/versions") as answer,
    ):
        assert answer.status == 200


async def hear_each_other(one: HttpClient, other: HttpClient) -> None:
    """Have two people on two workers talk in one room; each hears the other while waiting."""
    for client in (one, other):
        await client.register()
    room_id = await one.create_room()
    await other.join(room_id)
    for sender, reader in ((one, other), (other, one)):
        since = (await reader.sync())["next_batch"]
        waiting = asyncio.create_task(reader.sync(since, 20_000))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await sender.send(room_id, f"from {sender.user_id}")
            assert bodies(await waiting, room_id) == [f"from {sender.user_id}"]


async def test_workers_may_stand_beside_it(database: str) -> None:
    """`ranvier worker` beside it would be a server of its own, whose people do not hear the others."""
    async with services(database) as settings, watched(settings) as (server, _):
        await server.start()
        with running(server, "beside") as worker:
            await worker.hear("READY=1")
            async with HttpClient(server.url) as one, HoppingClient([worker.socket]) as other:
                await hear_each_other(one, other)
                async with HoppingClient([run_folder(server) / "main.http", worker.socket]) as hopper:
                    hopper.token = one.token
                    room_id = await hopper.create_room()
                    since = (await hopper.sync())["next_batch"]
                    for number in range(20):
                        await hopper.send(room_id, str(number))
                        answer = await hopper.sync(since)
                        assert bodies(answer, room_id) == [str(number)]
                        since = answer["next_batch"]
            worker.process.terminate()
            assert await worker.end() == 0
        assert "Worker beside is there" in server.log


def run_folder(server: ServerProcess) -> Path:
    """Give where its private sockets are."""
    return server.folder / "data" / "run"


async def test_workers_beside_it_find_its_embedded_database(database: str) -> None:
    """Who has a Redis and no PostgreSQL of their own could not add a worker."""
    async with services(database) as settings, watched({"redis": settings["redis"]}) as (server, _):
        await server.start()
        with running(server, "beside") as worker:
            await worker.hear("READY=1")
            async with HttpClient(server.url) as one, HoppingClient([worker.socket]) as other:
                await hear_each_other(one, other)
            worker.process.terminate()
            assert await worker.end() == 0


async def ask_page(server: ServerProcess, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Ask what the page asks, on a server's private socket."""
    connector = aiohttp.UnixConnector(str(run_folder(server) / "main.http"))
    async with (
        aiohttp.ClientSession(connector=connector, headers={"X-Ranvier-Console": "1"}) as session,
        session.request(method, f"http://localhost/_ranvier/api/{path}") as answer,
    ):
        return answer.status, await answer.json()


async def offered(server: ServerProcess) -> list[str]:
    """Give what the page offers to do with a server."""
    _, status = await ask_page(server, "GET", "status")
    (own,) = status["workers"]
    return list(own["actions"])


async def test_what_is_started_again_can_be_restarted_with_a_click(database: str) -> None:
    """A click on Restart would end for good a server that systemd runs with `Restart=on-failure`."""
    async with services(database) as settings, watched(settings) as (server, _):
        await server.start()
        assert await offered(server) == ["restart"]
        assert (await ask_page(server, "POST", "workers/main/restart"))[0] == 200
        assert await server.wait() == os.EX_TEMPFAIL


async def test_what_nothing_starts_again_cannot_be_restarted_with_a_click(database: str) -> None:
    """A click on Restart would end for good a server that somebody started by hand."""
    async with services(database) as settings:
        with private_folder() as folder:
            by_hand = ServerProcess(folder, settings)
            try:
                await by_hand.start()
                assert await offered(by_hand) == []
                status, answer = await ask_page(by_hand, "POST", "workers/main/restart")
                assert (status, answer["errcode"]) == (400, "M_UNKNOWN")
                assert "nothing would start it again" in answer["error"]
                async with HttpClient(by_hand.url) as client:
                    await client.register()
            finally:
                await by_hand.stop()
