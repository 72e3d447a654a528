"""A worker that is drained and runs on: nobody is left there, and nobody notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.test_worker_life import Worker, running
from tests.http.edge import read_answer
from tests.postgres import private_folder
from tests.server.http_client import HttpClient

STATUS = "/_ranvier/api/status"
GUARD = {"X-Ranvier-Console": "1"}


_TRANSIT_S = 1.0


class Poller:
    """Poll on one connection, as long as the server lets it, then on a new one; keep what is heard."""

    def __init__(self, client: HttpClient, since: str) -> None:
        self.heard: list[str] = []
        self.answers = 0
        self._token = client.token
        self._since = since

    async def run(self, port: int) -> None:
        """Poll for ever. Raises what a connection does, and AssertionError for an answer that is none."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await self._poll(reader, writer)
            finally:
                writer.close()

    async def _poll(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Poll until the server says that it closes the connection.

        Only a poll that crossed the end of an idle connection may find it closed (RFC 9112, section 9.3.1).
        """
        is_idle = False
        while True:
            sent = time.monotonic()
            writer.write(
                f"GET /_matrix/client/v3/sync?since={self._since}&timeout=25000 HTTP/1.1\r\nHost: a\r\n"
                f"Authorization: Bearer {self._token}\r\n\r\n".encode()
            )
            try:
                answer = await read_answer(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                if is_idle and time.monotonic() - sent < _TRANSIT_S:
                    return
                raise
            assert answer.status == 200, answer
            self.answers += 1
            self._since = answer.json["next_batch"]
            for room in answer.json.get("rooms", {}).get("join", {}).values():
                self.heard += [it["content"].get("body") for it in room.get("timeline", {}).get("events", [])]
            if answer.headers.get("connection") == "close":
                return
            is_idle = True


async def ask(socket: Path, method: str, path: str) -> tuple[int, Any]:
    """Ask one worker on its private socket; give status and answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.request(method, f"http://localhost{path}", headers=GUARD) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text) if text.startswith("{") else text


async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Ask for the health of whoever serves a connection; give the status."""
    writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    return (await read_answer(reader)).status


async def waiting(cluster: ClusterProcess, names: list[str]) -> dict[str, int]:
    """Give how many syncs wait at each worker, as the page shows it."""
    _, found = await ask(cluster.worker_socket(names[0]), "GET", STATUS)
    return {it["name"]: it["sync_waiting"] for it in found["workers"]}


@pytest.fixture
async def three() -> AsyncIterator[ClusterProcess]:
    """Give a server of three workers of the test's own."""
    with private_folder() as folder:
        process = ClusterProcess(folder, 3)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@asynccontextmanager
async def polling(cluster: ClusterProcess, count: int) -> AsyncIterator[tuple[HttpClient, str, list[Poller]]]:
    """Give somebody who writes, a room, and so many who poll there, each by themselves."""
    pollers: list[Poller] = []
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(HttpClient(cluster.url))
        await writer.register()
        room_id = await writer.create_room(preset="public_chat")
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running_polls = []
        for _ in range(count):
            client = await stack.enter_async_context(HttpClient(cluster.url))
            await client.register()
            await client.join(room_id)
            poller = Poller(client, (await client.sync())["next_batch"])
            running_polls.append(tasks.create_task(poller.run(cluster.port)))
            pollers.append(poller)
        try:
            yield writer, room_id, pollers
        finally:
            for poll in running_polls:
                poll.cancel()


async def heard_by_all(pollers: list[Poller], text: str) -> None:
    """Wait until everybody has heard something, and see that it was once."""
    async with asyncio.timeout(20):
        while not all(text in it.heard for it in pollers):
            await asyncio.sleep(0.05)
    assert all(it.heard.count(text) == 1 for it in pollers)


async def test_nobody_stays_with_a_drained_worker_nor_with_one_that_ends(three: ClusterProcess) -> None:
    """An administrator would wait in vain for a drained worker to be left, or clients see errors.

    So they would while workers are restarted one after the other.
    """
    names = ["worker1", "worker2", "worker3"]
    async with polling(three, 15) as (writer, room_id, pollers):
        async with asyncio.timeout(20):
            while sum((counts := await waiting(three, names)).values()) < 15:
                await asyncio.sleep(0.2)
        drained = max(names, key=counts.__getitem__)
        assert counts[drained] > 0
        idle = [await asyncio.open_connection("127.0.0.1", three.port) for _ in range(12)]
        assert [await health(*ends) for ends in idle] == [200] * 12
        socket = three.worker_socket(drained)
        assert (await ask(socket, "GET", "/health"))[0] == 200
        status, _ = await ask(three.worker_socket(names[0]), "POST", f"/_ranvier/api/workers/{drained}/drain")
        assert status == 200
        async with asyncio.timeout(10):
            while (counts := await waiting(three, names))[drained] or sum(counts.values()) < 15:
                await asyncio.sleep(0.2)
        await writer.send(room_id, "still heard")
        await heard_by_all(pollers, "still heard")
        assert (await ask(socket, "GET", "/health"))[0] == 503
        assert [await health(*ends) for ends in idle] == [200] * 12
        for _, end in idle:
            end.close()
        # Nobody asks again and again, or comes back.
        answers = sum(it.answers for it in pollers)
        await asyncio.sleep(2)
        assert sum(it.answers for it in pollers) - answers <= len(pollers)
        assert (await waiting(three, names))[drained] == 0
        for number, name in enumerate((it for it in names if it != drained), 1):
            pid = await three.kill_worker(name, signal.SIGTERM)
            await writer.send(room_id, f"{name} ends")
            await heard_by_all(pollers, f"{name} ends")
            await three.wait_live(2, [pid])  # and the drained one
            assert three.log.count("ended (status 0); starting it again") == number


async def test_a_drained_worker_without_a_front_is_asked_by_nobody(cluster: ClusterProcess) -> None:
    """A web server in front would go on giving users to a worker that is to be left alone."""
    with running(cluster, "aside") as worker, running(cluster, "beside") as other:
        await worker.hear("READY=1")
        await other.hear("READY=1")
        async with HoppingClient([worker.socket]) as client, HoppingClient([other.socket]) as there:
            await client.register()
            there.token = client.token
            room_id = await client.create_room()
            since = (await client.sync())["next_batch"]
            polls = [asyncio.create_task(client.sync(since, 25_000)) for _ in range(3)]
            await until_waiting(cluster, "aside", 3)
            private = cluster.worker_socket("aside")
            status, _ = await ask(private, "POST", "/_ranvier/api/workers/aside/drain")
            assert status == 200
            async with asyncio.timeout(10):
                tokens = [(await poll)["next_batch"] for poll in polls]
            await until_closed(worker)
            assert (await ask(private, "GET", "/health"))[0] == 503
            await there.send(room_id, "on the other one")
            news = await there.sync(tokens[0], 10_000)
            assert "on the other one" in json.dumps(news)
            await until_waiting(cluster, "aside", 0)
        worker.process.terminate()
        assert await worker.end() == 0


async def until_waiting(cluster: ClusterProcess, name: str, count: int) -> None:
    """Wait until so many syncs wait at a worker."""
    async with asyncio.timeout(10):
        while (await waiting(cluster, [name]))[name] != count:
            await asyncio.sleep(0.1)


async def until_closed(worker: Worker) -> None:
    """Wait until a worker takes no connections any more."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(str(worker.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return
            writer.close()
            await asyncio.sleep(0.05)


async def test_of_two_workers_the_drained_one_is_removed(three: ClusterProcess) -> None:
    """Who drains a worker and then asks for one less would be left with none that serves, and no error."""
    for name in ("worker1", "worker2"):
        drain = f"/_ranvier/api/workers/{name}/drain"
        async with asyncio.timeout(20):
            # 503: the worker has much to do, and did not begin.
            while (asked := await ask(three.worker_socket("worker3"), "POST", drain))[0] == 503:
                await asyncio.sleep(0.2)
        assert asked[0] == 200, asked
    left = {}
    for count in (2, 1):
        os.kill(three.pid, signal.SIGTTOU)
        async with asyncio.timeout(30):
            while len(left := await three.workers()) > count:
                await asyncio.sleep(0.1)
    assert list(left) == ["worker3"]
    async with HttpClient(three.url) as client, asyncio.timeout(20):
        await client.register()
        os.kill(three.pid, signal.SIGTTOU)
        while "No worker is removed" not in three.log:
            await asyncio.sleep(0.05)
        await client.create_room()
