"""A server of several workers as a person starts it, and clients that ask whichever worker they like."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yarl

from ranvier.config import load
from ranvier.processes.status import look
from tests.oidc_provider import Reply
from tests.server.http_client import HttpClient, Refused, Unavailable
from tests.server.process import ServerProcess


class ClusterProcess(ServerProcess):
    """Run ``ranvier up --workers N`` in a folder."""

    def __init__(
        self,
        folder: Path,
        workers: int = 3,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        no_limit = {"rc_room_creation": {"per_second": 1_000_000, "burst_count": 1_000_000}}
        super().__init__(folder, {**no_limit, **(settings or {})}, ["--workers", str(workers)], environment)
        self.count = workers

    def worker_socket(self, name: str) -> Path:
        """Where one worker answers alone."""
        return self.folder / "data" / "run" / f"{name}.http"

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start it and wait until all workers serve."""
        await super().start(timeout_s)
        await self.wait_live(self.count)

    async def status(self) -> dict[str, Any]:
        """Give what ``ranvier status --json`` prints."""
        config = load([self.folder / "homeserver.yaml"])
        return (await look(config, self.folder / "data")).to_json()

    async def workers(self) -> dict[str, dict[str, Any]]:
        """Give what each live worker says of itself, by name."""
        return {it["name"]: it for it in (await self.status())["workers"] if it["state"] == "live"}

    async def wait_live(self, count: int, but_pids: Sequence[int] = (), timeout_s: float = 30.0) -> list[str]:
        """Wait until so many workers are live, none of them one of ``but_pids``; give their names."""
        async with asyncio.timeout(timeout_s):
            while True:
                workers = await self.workers()
                pids = {it["pid"] for it in workers.values()}
                if len(workers) == count and not pids & set(but_pids):
                    return sorted(workers)
                await asyncio.sleep(0.05)

    async def kill_worker(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Send one worker a signal and give its pid."""
        pid: int = (await self.workers())[name]["pid"]
        os.kill(pid, signum)
        return pid


class HoppingClient(HttpClient):
    """Ask another worker, chosen at random, with each request; or those that ``choose`` says."""

    def __init__(self, sockets: Sequence[Path], seed: int = 0) -> None:
        super().__init__("http://worker")
        self.sockets = list(sockets)
        self._random = random.Random(seed)
        self._sessions: dict[Path, aiohttp.ClientSession] = {}
        self.asked = 0

    def choose(self) -> Path:
        """Choose whom to ask."""
        return self._random.choice(self.sockets)

    async def close(self) -> None:
        """Close its connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _some_worker(self) -> aiohttp.ClientSession:
        socket = self.choose()
        session = self._sessions.get(socket)
        if session is None:
            connector, no_cookies = aiohttp.UnixConnector(str(socket), limit=0), aiohttp.DummyCookieJar()
            session = aiohttp.ClientSession(connector=connector, cookie_jar=no_cookies)
            self._sessions[socket] = session
        return session

    async def browse(
        self, method: str, path: str, headers: dict[str, str], form: dict[str, str] | None = None
    ) -> Reply:
        """Send a request to some worker as a browser does, which follows no redirect."""
        url = yarl.URL(self.url + path, encoded=True)
        self.asked += 1
        async with self._some_worker().request(
            method, url, data=form, headers=headers, allow_redirects=False
        ) as response:
            return Reply(response.status, response.headers, await response.text())

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request to some worker and give the answer. Raises Refused."""
        session = self._some_worker()
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = self.url + (path if path.startswith("/_") else f"/_matrix/client{path}")
        params = {name: str(value) for name, value in query.items()}
        self.asked += 1
        async with session.request(method, url, json=body, params=params, headers=headers) as response:
            answer = await response.json(content_type=None)
            if response.status != 200:
                raise (Unavailable if response.status == 503 else Refused)(response.status, answer)
            return answer
