"""A server of workers with people on it, one fault after the other, and the checks after each."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from ranvier.processes.postgres import running_dsn
from tests.chaos.clients import Direct, Through
from tests.chaos.excuses import NO_EXCUSE, Excuse, Message
from tests.chaos.faults import Faults
from tests.chaos.talk import EVERYBODY_SAYS, Talk
from tests.chaos.two_writers import written_by_two
from tests.cluster.cluster_process import ClusterProcess
from tests.postgres import private_folder
from tests.server.http_client import HttpClient

PEOPLE = 20
HOPPERS = 4
ROOMS = 4
WORKERS = 4


class Storm:
    """Faults upon people who talk; after each, everything that people would notice is checked."""

    def __init__(
        self, cluster: ClusterProcess, faults: Faults, talk: Talk, chance: random.Random, *, watch_s: float
    ) -> None:
        self.cluster = cluster
        self.faults = faults
        self.talk = talk
        self.done: Counter[str] = Counter()
        self.slowest_s: dict[str, float] = {}
        self._chance = chance
        self._watch_s = watch_s
        self._begun = time.monotonic()
        self._name, self._excuse, self._first_failure = "people alone", NO_EXCUSE, 0

    @property
    def all(self) -> Mapping[str, Callable[[], Awaitable[Excuse]]]:
        """Everything that can go wrong, by name."""
        return {**self.faults.all, "rooms written by two": self.write_twice}

    async def write_twice(self) -> Excuse:
        """Have a worker that knows of no other write where the others write, and rooms placed at random."""
        await written_by_two(self.cluster, self.talk, self._chance)
        return NO_EXCUSE

    async def strike(self, name: str) -> None:
        """Do it, watch for a while, and wait until all is heard; only what it excuses may have failed."""
        await self.talk.wait_said(PEOPLE)
        self.check(self.talk.take_messages())
        self._name, self._excuse, self._first_failure = name, NO_EXCUSE, len(self.talk.failures)
        begun, in_flight = time.monotonic(), len(self.talk.in_flight)
        self._excuse = await self.all[name]()
        ended = time.monotonic()
        await asyncio.sleep(self._watch_s)
        await self.talk.wait_said(PEOPLE)
        await self.talk.wait_heard()
        self.done[name] += 1
        messages = self.talk.take_messages()
        slowest_s = max(it.took_s for it in messages)
        self.slowest_s[name] = max(slowest_s, self.slowest_s.get(name, 0.0))
        print(
            f"{begun - self._begun:6.1f} s  {name}: {ended - begun:.1f} s, "
            f"{len(self.talk.failures) - self._first_failure} requests failed ({in_flight} were in flight), "
            f"the slowest message took {slowest_s:.1f} s; "
            f"{len(self.talk.answered)} messages, {self.talk.deliveries} deliveries",
            flush=True,
        )
        self.check(messages)

    def check(self, messages: Sequence[Message]) -> None:
        """Demand that whatever failed or was slow since the last fault began is excused by it."""
        stray = self._excuse.stray(self.talk.failures[self._first_failure :])
        assert not stray, (
            f"{self._name}: {len(stray)} requests failed that had nothing to do with it "
            f"(excused are {self._excuse}): {stray[:5]}"
        )
        late = self._excuse.late(messages)
        assert not late, f"{self._name}: {len(late)} messages took too long ({self._excuse}): {late[:5]}"

    def summary(self) -> str:
        """Say what was done and what came of it."""
        return (
            f"{self.done.total()} faults ({', '.join(f'{n} × {it}' for it, n in self.done.items())}), "
            f"{self.faults.unheard} commits took place that nobody was told of, "
            f"{self.talk.requests} requests, {len(self.talk.failures)} of them failed and were repeated, "
            f"{len(self.talk.answered)} messages answered, {self.talk.deliveries} deliveries; "
            f"the slowest message took {max(self.slowest_s.values()):.1f} s with its repetitions"
        )


@asynccontextmanager
async def storm(seed: int, *, pause_s: float, watch_s: float) -> AsyncIterator[Storm]:
    """Start a server and have people talk; on leaving, they finish, and the whole account is checked.

    ``pause_s`` is how long what stands still does, ``watch_s`` how long people are watched after each fault.
    """
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
                    made = Storm(cluster, faults, talk, random.Random(seed), watch_s=watch_s)
                    yield made
                    talk.finish()
                made.check(talk.take_messages())
                await check_positions(folder)
                print(made.summary(), flush=True)
        except BaseException:
            kept = Path(tempfile.mkdtemp(prefix="ranvier-chaos-")) / "server.log"
            kept.write_text(cluster.log)
            print(f"All that the server wrote is in {kept}; at last:\n{cluster.log[-20_000:]}", flush=True)
            raise
        finally:
            faults.release()
            await cluster.stop()


def _clients(cluster: ClusterProcess, seed: int) -> list[HttpClient]:
    sockets = [cluster.worker_socket(f"worker{number}") for number in range(1, WORKERS + 1)]
    return [
        Direct(sockets, seed=seed + number) if number < HOPPERS else Through(cluster.url, seed=seed + number)
        for number in range(PEOPLE)
    ]


async def _gather_in_rooms(members: list[HttpClient]) -> list[str]:
    await asyncio.gather(*(member.register() for member in members))
    rooms = [await members[0].create_room(power_level_content_override=EVERYBODY_SAYS) for _ in range(ROOMS)]
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
