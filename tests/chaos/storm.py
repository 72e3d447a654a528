"""A server of workers with people on it, one fault after the other, and the checks after each."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from ranvier.processes.postgres import running_dsn
from tests.chaos.alone import lone_worker
from tests.chaos.faults import NO_EXCUSE, Excuse, Faults
from tests.chaos.talk import Talk
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.postgres import private_folder
from tests.server.http_client import HttpClient

PEOPLE = 20
HOPPERS = 4
ROOMS = 4
WORKERS = 4
WRITERS_ALONE = 4
MESSAGES_ALONE = 20


class _Through(HttpClient):
    """Ask whoever the front chooses, and tell of each request that fails."""

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request and give the answer. Raises Refused."""
        if self._session is None:
            self._session = _candid(aiohttp.TCPConnector(limit=0))
        return await super().request(method, path, body, **query)


class _Direct(HoppingClient):
    """Ask workers directly and at random, so that several are asked to write into one room at once.

    It knows that workers come and go: where nobody listens, it asks the next.
    """

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request and give the answer. Raises Refused."""
        for where in self.sockets:
            if where not in self._sessions:
                self._sessions[where] = _candid(aiohttp.UnixConnector(str(where), limit=0))
        while True:
            try:
                return await super().request(method, path, body, **query)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)


def _candid(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """Make a session that does not quietly repeat requests that failed."""
    session = aiohttp.ClientSession(connector=connector)
    session._retry_connection = False
    return session


class Storm:
    """Faults upon people who talk; after each, everything that people would notice is checked."""

    def __init__(self, cluster: ClusterProcess, faults: Faults, talk: Talk) -> None:
        self.cluster = cluster
        self.faults = faults
        self.talk = talk
        self.done: Counter[str] = Counter()
        self._begun = time.monotonic()

    @property
    def all(self) -> Mapping[str, Callable[[], Awaitable[Excuse]]]:
        """Everything that can go wrong, by name."""
        return {**self.faults.all, "rooms written by two": self.write_twice}

    async def write_twice(self) -> Excuse:
        """Have a worker that knows of no other write into the rooms that the others write into."""
        async with lone_worker(self.cluster) as where, asyncio.TaskGroup() as tasks:
            for number, member in enumerate(self.talk.members[:WRITERS_ALONE]):
                tasks.create_task(self._write_alone(where, number, member.token))
        return NO_EXCUSE

    async def _write_alone(self, where: Path, writer: int, token: str | None) -> None:
        async with HoppingClient([where]) as client:
            client.token = token
            for number in range(MESSAGES_ALONE):
                name = f"alone {self.done.total()} {writer} {number}"
                room_id = self.talk.rooms[number % len(self.talk.rooms)]
                self.talk.answered[name] = room_id, await client.send(room_id, name, txn_id=name)

    async def strike(self, name: str) -> None:
        """Do it, then wait until all is heard; only requests that it excuses may have failed."""
        await self.talk.wait_said(PEOPLE)
        failures, begun = len(self.talk.failures), time.monotonic()
        in_flight = len(self.talk.in_flight)
        excuse = await self.all[name]()
        await self.talk.wait_said(PEOPLE)
        await self.talk.wait_heard()
        failed = self.talk.failures[failures:]
        self.done[name] += 1
        print(
            f"{begun - self._begun:6.1f} s  {name}: {time.monotonic() - begun:.1f} s, "
            f"{len(failed)} requests failed ({in_flight} were in flight), "
            f"{len(self.talk.answered)} messages, {self.talk.deliveries} deliveries",
            flush=True,
        )
        stray = excuse.stray(failed)
        assert not stray, f"{name}: {len(stray)} requests failed that had nothing to do with it: {stray[:5]}"

    def summary(self) -> str:
        """Say what was done and what came of it."""
        return (
            f"{self.done.total()} faults ({', '.join(f'{n} × {it}' for it, n in self.done.items())}), "
            f"{self.talk.requests} requests, {len(self.talk.failures)} of them failed and were repeated, "
            f"{len(self.talk.answered)} messages answered, {self.talk.deliveries} deliveries; "
            f"the slowest message took {self.talk.slowest_s:.1f} s with its repetitions"
        )


@asynccontextmanager
async def storm(seed: int, *, pause_s: float) -> AsyncIterator[Storm]:
    """Start a server and have people talk; on leaving, they finish, and the whole account is checked."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, WORKERS)
        faults = Faults(cluster, random.Random(seed), pause_s=pause_s)
        try:
            await cluster.start()
            await faults.wait_whole()
            async with AsyncExitStack() as stack:
                members = [await stack.enter_async_context(it) for it in _clients(cluster, seed)]
                talk = Talk(members, await _gather_in_rooms(members), seed=seed)
                started = asyncio.Event()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(talk.run(started))
                    await started.wait()
                    made = Storm(cluster, faults, talk)
                    yield made
                    talk.finish()
                await check_positions(folder)
                print(made.summary(), flush=True)
        except BaseException:
            print(f"The server wrote at last:\n{cluster.log[-20_000:]}", flush=True)
            raise
        finally:
            faults.release()
            await cluster.stop()


def _clients(cluster: ClusterProcess, seed: int) -> list[HttpClient]:
    sockets = [cluster.worker_socket(f"worker{number}") for number in range(1, WORKERS + 1)]
    return [
        _Direct(sockets, seed=seed + number) if number < HOPPERS else _Through(cluster.url)
        for number in range(PEOPLE)
    ]


async def _gather_in_rooms(members: list[HttpClient]) -> list[str]:
    await asyncio.gather(*(member.register() for member in members))
    rooms = [await members[0].create_room() for _ in range(ROOMS)]
    await asyncio.gather(*(member.join(room_id) for member in members[1:] for room_id in rooms))
    return rooms


async def check_positions(folder: Path) -> None:
    """Demand that the log of a running server has no gaps."""
    dsn = running_dsn(folder / "data")
    assert dsn is not None
    connection = await asyncpg.connect(dsn)
    try:
        head = await connection.fetchval("SELECT pos FROM log_head")
        records = await connection.fetch(
            "SELECT pos FROM events WHERE pos > 0 UNION ALL SELECT pos FROM log ORDER BY pos"
        )
    finally:
        await connection.close()
    positions = [record["pos"] for record in records]
    assert positions == list(range(1, head + 1)), "the log has gaps, or two rows of one position"
