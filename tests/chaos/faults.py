"""Things that go wrong with a server of workers; each ends when the server is whole again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection
from tests.chaos.talk import Failure
from tests.cluster.cluster_process import ClusterProcess

_WITHIN_S = 60.0
_MARGIN_S: Final = 0.5
_TRANSIT_S: Final = 1.0
_TRANSIT_OF_ONE: Final = 10


@dataclass(frozen=True)
class Excuse:
    """Which requests may have failed: those that were begun before a moment (monotonic seconds).

    And ``in_transit`` of those that were on their way, on a connection that was kept alive, when a worker
    that was asked to end closed it (RFC 9112, section 9.3.1: clients repeat those by themselves).
    """

    begun_before: float = 0.0
    in_transit: int = 0

    def stray(self, failures: Sequence[Failure]) -> list[Failure]:
        """Give those that it does not excuse."""
        left = [it for it in failures if it.began >= self.begun_before]
        passing = [it for it in left if it.disconnected and it.ended - it.began < _TRANSIT_S]
        excused = {id(it) for it in passing[: self.in_transit]}
        return [it for it in left if id(it) not in excused]


NO_EXCUSE: Final = Excuse()


class Faults:
    """Do things to a running cluster. ``pause_s``: how long what stands still does."""

    def __init__(self, cluster: ClusterProcess, chance: random.Random, *, pause_s: float) -> None:
        self._cluster = cluster
        self._chance = chance
        self._pause_s = pause_s
        self._stopped: set[int] = set()
        self.all: Mapping[str, Callable[[], Awaitable[Excuse]]] = {
            "worker killed": self.kill_worker,
            "two workers killed": self.kill_two,
            "worker frozen": self.freeze_worker,
            "worker added and drained": self.add_and_drain,
            "workers restarted one by one": self.restart_one_by_one,
            "configuration read again": self.reload,
            "Redis killed": self.kill_redis,
            "Redis emptied": self.empty_redis,
            "Redis paused": self.pause_redis,
            "PostgreSQL restarted": self.restart_postgres,
            "PostgreSQL killed": self.kill_postgres,
        }

    # -- workers ---------------------------------------------------------------------------------------

    async def kill_worker(self) -> Excuse:
        """Kill the worker that has run longest (so each in turn) on the spot; it is started again."""
        return await self._kill(self.workers()[:1])

    async def kill_two(self) -> Excuse:
        """Kill two workers at once."""
        return await self._kill(self._chance.sample(self.workers(), 2))

    async def freeze_worker(self) -> Excuse:
        """Stop a worker where it stands, and let it go on later with what it had in hand."""
        pid = self._chance.choice(self.workers())
        self._signal(pid, signal.SIGSTOP)
        await asyncio.sleep(self._pause_s)
        self._signal(pid, signal.SIGCONT)
        await self.wait_whole()
        return NO_EXCUSE

    async def add_and_drain(self) -> Excuse:
        """Start one worker more; then drain one, as when a server is given less to do."""
        self._signal(self._cluster.pid, signal.SIGTTIN)
        await self.wait_whole(self._cluster.count + 1)
        await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        self._signal(self._cluster.pid, signal.SIGTTOU)
        await self._until(lambda: len(self.workers()) == self._cluster.count)
        return Excuse(in_transit=_TRANSIT_OF_ONE)

    async def restart_one_by_one(self) -> Excuse:
        """Ask each worker in turn to end, as for a new version; the next when it is back."""
        for pid in self.workers():
            self._signal(pid, signal.SIGTERM)
            await self._gone(pid)
            await self.wait_whole()
        return Excuse(in_transit=_TRANSIT_OF_ONE * self._cluster.count)

    async def reload(self) -> Excuse:
        """Have all workers read their configuration again."""
        self._signal(self._cluster.pid, signal.SIGHUP)
        await asyncio.sleep(0.2)
        return NO_EXCUSE

    # -- Redis and PostgreSQL ----------------------------------------------------------------------------

    async def kill_redis(self) -> Excuse:
        """Kill Redis; it comes back empty."""
        pid = self._redis_pid()
        self._signal(pid, signal.SIGKILL)
        await self._gone(pid)
        await self._until(lambda: self._redis_pid() != pid and _answers(self._redis_socket()))
        return NO_EXCUSE

    async def empty_redis(self) -> Excuse:
        """Take all that Redis knows from under the workers."""
        connection = await RedisConnection.open(RedisConfig(path=self._redis_socket()))
        try:
            await connection.command("FLUSHALL")
        finally:
            connection.close()
        return NO_EXCUSE

    async def pause_redis(self) -> Excuse:
        """Have Redis stand still."""
        pid = self._redis_pid()
        self._signal(pid, signal.SIGSTOP)
        await asyncio.sleep(self._pause_s)
        self._signal(pid, signal.SIGCONT)
        return NO_EXCUSE

    async def restart_postgres(self) -> Excuse:
        """Restart PostgreSQL in order, though with everybody thrown out."""
        return await self._end_postgres(signal.SIGINT)

    async def kill_postgres(self) -> Excuse:
        """Have PostgreSQL end without putting anything in order, as in a crash."""
        return await self._end_postgres(signal.SIGQUIT)

    async def _end_postgres(self, signum: int) -> Excuse:
        pid = self._postgres_status()[0]
        self._signal(pid, signum)
        await self._gone(pid)
        await self._until(lambda: self._postgres_status()[0] not in (0, pid) and self._postgres_status()[1])
        # Connections are made anew within the pause between two attempts.
        return Excuse(time.monotonic() + 2.0)

    # -- the processes -----------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Give the pids of the workers, the one that has run longest first."""
        children = Path(f"/proc/{self._cluster.pid}/task/{self._cluster.pid}/children").read_text().split()
        found = [pid for pid in map(int, children) if b"ranvier.app.worker" in _command_of(pid)]
        return sorted(found, key=_started)

    async def wait_whole(self, count: int | None = None) -> None:
        """Wait until so many workers answer."""
        names = [f"worker{number}" for number in range(1, (count or self._cluster.count) + 1)]
        await self._until(lambda: all(_answers(self._cluster.worker_socket(name)) for name in names))

    def release(self) -> None:
        """Let go on whatever stands still."""
        for pid in list(self._stopped):
            self._signal(pid, signal.SIGCONT)

    async def _kill(self, pids: list[int]) -> Excuse:
        for pid in pids:
            self._signal(pid, signal.SIGKILL)
        killed = time.monotonic()
        for pid in pids:
            await self._gone(pid)
        await self.wait_whole()
        return Excuse(killed + _MARGIN_S)

    def _signal(self, pid: int, signum: int) -> None:
        assert pid > 1
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        (self._stopped.add if signum == signal.SIGSTOP else self._stopped.discard)(pid)

    async def _gone(self, pid: int) -> None:
        # Not before it is reaped: until its last thread has ended, its sockets are open.
        await self._until(lambda: not Path(f"/proc/{pid}").exists())

    async def _until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(_WITHIN_S):
            while not condition():
                await asyncio.sleep(0.02)

    def _redis_socket(self) -> Path:
        return self._cluster.folder / "data" / "redis" / "redis.sock"

    def _redis_pid(self) -> int:
        return int((self._redis_socket().parent / "redis.pid").read_text())

    def _postgres_status(self) -> tuple[int, bool]:
        """Give the postmaster's pid (0: none) and whether it is ready."""
        try:
            lines = (
                (self._cluster.folder / "data" / "postgres" / "cluster" / "postmaster.pid")
                .read_text()
                .split("\n")
            )
            return int(lines[0]), len(lines) > 7 and lines[7].strip() == "ready"
        except (FileNotFoundError, ValueError):
            return 0, False


def _command_of(pid: int) -> bytes:
    """Give the command line of a process; nothing if it is gone or about to be."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _started(pid: int) -> int:
    """Give when a process was started, in ticks since the machine was (source: proc(5), ``starttime``)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _answers(path: Path) -> bool:
    """Tell whether somebody listens on a UNIX socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True
