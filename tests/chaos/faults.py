"""Things that go wrong with a server of workers; each ends when the server is whole again."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ranvier.cluster.members import BEAT_S, LEASE_S
from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection
from ranvier.log.standstill import READ_S
from tests.chaos.excuses import AT_ONCE_S, NO_EXCUSE, Excuse, one_of
from tests.chaos.processes import children, client_ports, is_stopped, listener_at, started
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import IN_FLIGHT, figures
from tests.cluster.last_commit import last_commit
from tests.cluster.late_writes import late_writes
from tests.server.http_client import HttpClient, Refused

_WITHIN_S = 60.0
_CLOSED_WITHIN_S: Final = 1.0
_GOES_ON_WITHIN_S: Final = 0.3
_LOOK_S: Final = 0.02
# Of 20 clients, each with some connections: written in the moment in which the connection is closed.
TRANSIT_OF_ONE: Final = 5
# Nobody waits until a lease is over: links tell of a death, and what a worker does not begin others do.
_BEFORE_LEASE_S: Final = LEASE_S - BEAT_S
_OVERTAKEN_WITHIN_S: Final = 7.0
_NEWCOMERS: Final = 2
_TOKEN_LIMIT: Final = "rc_registration_token_validity"
_SLOW: Final = {"per_second": 5, "burst_count": 2}


class Faults:
    """Do things to a running cluster. ``pause_s``: how long what stands still does."""

    def __init__(self, cluster: ClusterProcess, chance: random.Random, *, pause_s: float) -> None:
        self._cluster = cluster
        self._chance = chance
        self._pause_s = pause_s
        self._stopped: set[int] = set()
        self.unheard = 0
        """How many commits took place of which their worker, killed meanwhile, heard nothing."""
        self._names = itertools.cycle(f"worker{number}" for number in range(1, cluster.count + 1))
        self.all: Mapping[str, Callable[[], Awaitable[Excuse]]] = {
            "worker killed": self.kill_worker,
            "worker killed in a commit": self.kill_in_commit,
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
        """Kill the next worker, by name, on the spot; it is started again."""
        return await self._kill([self.pid(next(self._names))])

    async def kill_in_commit(self) -> Excuse:
        """Kill a worker that writes when PostgreSQL has its commit: nobody is told that it takes place."""
        name = await self._writer()
        async with last_commit(self._cluster, name) as last:
            excuse = await self.end_at_once([self.pid(name)])
        self.unheard += last.took_place
        await self.wait_whole()
        return excuse

    async def kill_two(self) -> Excuse:
        """Kill two workers at once."""
        return await self._kill(self._chance.sample(self.workers(), 2))

    async def freeze_worker(self) -> Excuse:
        """Stop a worker that writes, with writes in its hand, and let it go on with them later."""
        name = await self._writer()
        async with late_writes(self._cluster, name) as late:
            pid = self.pid(name)
            async with late.under_way(alone=False):
                excuse = await self.freeze(pid)
            async with asyncio.timeout(_OVERTAKEN_WITHIN_S):
                await late.overtake()
            await self._meet_newcomers()
            await asyncio.sleep(excuse.stopped + self._pause_s - time.monotonic())
            excuse = await self.thaw(pid, excuse)
            await late.check()
        await self.wait_whole()
        return excuse

    async def freeze(self, pid: int) -> Excuse:
        """Have a worker stand still; give what ``thaw`` needs."""
        await self._stop(pid)
        return Excuse(frozenset([pid]), client_ports(pid), stopped=time.monotonic())

    async def thaw(self, pid: int, frozen: Excuse) -> Excuse:
        """Let a worker go on.

        Its own clients waited for it, and others for what it had begun for them, until it was taken for dead.
        What it had in hand without a transaction id, and others wrote after, it does not do any more.
        """
        self._signal(pid, signal.SIGCONT)
        resumed = time.monotonic()
        read_until = resumed + _GOES_ON_WITHIN_S + READ_S  # what it reads then may have lain there
        ports = frozen.ports
        while time.monotonic() < read_until:  # it takes what the front had offered to it meanwhile, too
            ports |= client_ports(pid)
            await asyncio.sleep(_LOOK_S)
        return replace(
            frozen,
            ports=ports,
            resumed=read_until,
            in_hand_s=LEASE_S + BEAT_S + AT_ONCE_S,
            meanwhile_s=_BEFORE_LEASE_S,
            victims_s=resumed - frozen.stopped + AT_ONCE_S,
        )

    async def _meet_newcomers(self) -> None:
        """Have people come to the front, and be served by those who are well."""
        async with asyncio.timeout(self._pause_s):
            for _ in range(_NEWCOMERS):
                async with HttpClient(self._cluster.url) as newcomer:
                    await newcomer.register()
                    await newcomer.send(await newcomer.create_room(), "hello")

    async def add_and_drain(self) -> Excuse:
        """Start one worker more; drain it, as when there is less to do, and one in the middle of its work."""
        added, loaded = f"worker{self._cluster.count + 1}", f"worker{self._cluster.count}"
        self._signal(self._cluster.pid, signal.SIGTTIN)
        await self.wait_whole(self._cluster.count + 1)
        await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        drain = partial(self._signal, self._cluster.pid, signal.SIGTTOU)
        excuses = [await self._end_in_order(self.pid(added), drain)]
        async with asyncio.timeout(_WITHIN_S):  # the question is one of the requests in flight
            while (await figures(self._cluster.worker_socket(loaded)))[IN_FLIGHT] < 2:
                await asyncio.sleep(_LOOK_S)
        excuses.append(await self._end_in_order(self.pid(loaded), drain))
        self._signal(self._cluster.pid, signal.SIGTTIN)
        await self.wait_whole()
        return one_of(excuses)

    async def restart_one_by_one(self) -> Excuse:
        """Ask each worker in turn to end, as for a new version; the next when it is back."""
        excuses = []
        for pid in self.workers():
            excuses.append(await self._end_in_order(pid, partial(self._signal, pid, signal.SIGTERM)))
            await self.wait_whole()
        return one_of(excuses)

    async def reload(self) -> Excuse:
        """Have all workers read a configuration with another limit, and then the first one again."""
        names = [f"worker{number}" for number in range(1, self._cluster.count + 1)]
        self._cluster.write_config(**{_TOKEN_LIMIT: _SLOW})
        self._signal(self._cluster.pid, signal.SIGHUP)
        await asyncio.gather(*(self._wait_limited(it, limited=True) for it in names))
        self._cluster.write_config()
        self._signal(self._cluster.pid, signal.SIGHUP)
        await asyncio.gather(*(self._wait_limited(it, limited=False) for it in names))
        return NO_EXCUSE

    async def _wait_limited(self, name: str, *, limited: bool) -> None:
        """Wait until a worker has refused somebody who asks too often, or has not for a while."""
        passed = 0
        async with asyncio.timeout(_WITHIN_S), HoppingClient([self._cluster.worker_socket(name)]) as client:
            while limited or passed < 5 * _SLOW["burst_count"]:
                try:
                    await client.get("/v1/register/m.login.registration_token/validity", token="none")
                except Refused as refused:
                    if refused.status != 429:
                        raise
                    if limited:
                        return
                    passed = 0
                    await asyncio.sleep(_LOOK_S)
                else:
                    passed += 1

    # -- Redis and PostgreSQL ----------------------------------------------------------------------------

    async def kill_redis(self) -> Excuse:
        """Kill Redis; it comes back empty."""
        pid = self._redis_pid()
        self._signal(pid, signal.SIGKILL)
        await self._gone(pid)
        await self._until(lambda: self._redis_pid() != pid and listener_at(self._redis_socket()))
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
        await self._stop(pid)
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
        pid, begun = self._postgres_status()[0], time.monotonic()
        self._signal(pid, signum)
        await self._gone(pid)
        await self._until(lambda: self._postgres_status()[0] not in (0, pid) and self._postgres_status()[1])
        # Connections are made anew within the pause between two attempts. A sync that is not answered from
        # memory (who comes to another worker, or while nobody knows which there are) needs them, too.
        return Excuse(
            unavailable=frozenset({"send", "state", "messages", "sync"}),
            unavailable_until=time.monotonic() + 2.0,
            slowest_s=time.monotonic() - begun + AT_ONCE_S,
        )

    # -- the processes -----------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Give the pids of the workers, the one that has run longest first."""
        return sorted(children(self._cluster.pid, b"ranvier.app.worker"), key=started)

    async def wait_whole(self, count: int | None = None) -> None:
        """Wait until so many workers answer."""
        names = [f"worker{number}" for number in range(1, (count or self._cluster.count) + 1)]
        await self._until(lambda: all(listener_at(self._cluster.worker_socket(name)) for name in names))

    def release(self) -> None:
        """Let go on whatever stands still."""
        for pid in list(self._stopped):
            self._signal(pid, signal.SIGCONT)

    async def _kill(self, pids: Sequence[int]) -> Excuse:
        excuse = await self.end_at_once(pids)
        await self.wait_whole()
        return excuse

    async def end_at_once(self, pids: Sequence[int]) -> Excuse:
        """Kill workers; note whose connections they held."""
        ports: set[int] = set()
        for pid in pids:  # what stands still neither takes connections nor gives them away
            await self._stop(pid)
        stopped = time.monotonic()
        for pid in pids:
            ports |= client_ports(pid)
            self._signal(pid, signal.SIGKILL)
        for pid in pids:
            await self._gone(pid)
        # State that another worker had passed on to it is not done again: somebody may have changed it since.
        return Excuse(
            frozenset(pids),
            frozenset(ports),
            until=time.monotonic() + _CLOSED_WITHIN_S,
            stopped=stopped,
            in_hand_s=_BEFORE_LEASE_S,
            meanwhile_s=_BEFORE_LEASE_S,
        )

    async def _end_in_order(self, pid: int, ask: Callable[[], None]) -> Excuse:
        """Have a worker drain and end; note whose connections it holds until then."""
        await self._stop(pid)
        ask()
        # It takes what the front had offered to it meanwhile, too, maybe between two of our looks.
        ports = set(client_ports(pid) | client_ports(self._cluster.pid))
        self._signal(pid, signal.SIGCONT)
        async with asyncio.timeout(_WITHIN_S):
            while Path(f"/proc/{pid}").exists():
                ports |= client_ports(pid)
                await asyncio.sleep(_LOOK_S)
        until = time.monotonic() + _CLOSED_WITHIN_S
        return Excuse(frozenset([pid]), frozenset(ports), until, at_most=TRANSIT_OF_ONE)

    async def _writer(self) -> str:
        members = await self._cluster.workers()
        return self._chance.choice(sorted(name for name, it in members.items() if it["takes_rooms"]))

    def pid(self, name: str) -> int:
        """Give the process of a worker that runs."""
        pid = listener_at(self._cluster.worker_socket(name))
        assert pid, f"{name} is not there"
        return pid

    async def _stop(self, pid: int) -> None:
        """Have a process stand still, and wait until it does."""
        self._signal(pid, signal.SIGSTOP)
        await self._until(lambda: is_stopped(pid))

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
                await asyncio.sleep(_LOOK_S)

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
