"""The cluster as people look at it: every worker, the pace of the log, PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import ranvier
from ranvier.cluster.descriptions import describe_log, describe_worker, is_silent, natural_order
from ranvier.cluster.forwarding import Forwarding
from ranvier.cluster.link import LinkLostError
from ranvier.cluster.members import Members, placing
from ranvier.cluster.placement import ROOM, Placement
from ranvier.cluster.stores import database_size, describe_postgresql, describe_redis
from ranvier.cluster.writers import room_writers
from ranvier.config.database import RedisConfig
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.spec.errors import MatrixError, not_found
from ranvier.storage.database import Database
from ranvier.wire.forwarded import ForwardedRequest
from ranvier.wire.members import CLIENT_ROLES, DRAINING, Member

logger = logging.getLogger(__name__)

DRAIN: Final = "drain"
RESTART: Final = "restart"
API: Final = "/_ranvier/api"
HISTORY_S: Final = 120
_MAX_ROOMS: Final = 5000  # of those active lately
_ROOMS_AT_ONCE: Final = 50  # placing one anew costs a microsecond for each worker
_GONE_S: Final = 300
_FRESH_S: Final = 0.9
_SIZE_FRESH_S: Final = 30.0

T = TypeVar("T")
Moment = tuple[int, float, float, float, float]
"""Milliseconds of 1970; rows a second; commit and delivery in milliseconds; requests a second."""


class Workers(Protocol):
    """The workers of this server."""

    @property
    def redis(self) -> RedisConfig | None:
        """Where Redis is, if there is one."""

    def members(self) -> Sequence[Member]:
        """Give all, with their newest figures."""

    def gone(self) -> Sequence[Mapping[str, Any]]:
        """Give those who went away in the last minutes, and what they were."""

    def heard_s_ago(self, member: Member) -> float:
        """Give of how long ago the figures of a worker are."""

    def own_name(self) -> str:
        """Give the name of the one that is asked."""

    def worker_of(self, room_id: str) -> str:
        """Give the name of the worker that a room is placed on."""

    def actions(self, member: Member) -> Sequence[str]:
        """Give what can be asked of a worker: ``drain``, ``restart``."""

    async def act(self, name: str, action: str) -> None:
        """Drain or restart a worker. Raises 404, 400, 503."""


class OneProcess:
    """A server that is one process: nobody takes over from it, and nobody would start it again."""

    redis: RedisConfig | None = None

    def __init__(self, own: Callable[[], Member]) -> None:
        self._own = own

    def members(self) -> Sequence[Member]:
        """Give the one."""
        return [self._own()]

    def gone(self) -> Sequence[Mapping[str, Any]]:
        """Give nobody."""
        return ()

    def heard_s_ago(self, member: Member) -> float:
        """Give none."""
        return 0.0

    def own_name(self) -> str:
        """Give its name."""
        return self._own().name

    def worker_of(self, room_id: str) -> str:
        """Give its name."""
        return self.own_name()

    def actions(self, member: Member) -> Sequence[str]:
        """Give nothing."""
        return ()

    async def act(self, name: str, action: str) -> None:
        """Refuse (404, 400)."""
        if name != self.own_name():
            raise not_found(f"There is no worker {name}")
        raise MatrixError(
            "M_UNKNOWN", 400, "This server is one process: stop it and start it the way it was started"
        )


class _Departed:
    """Remember for some minutes who is there no more: else a worker that dies is just not to be seen."""

    def __init__(self) -> None:
        self._there: Sequence[Member] = ()
        self._gone: dict[str, tuple[Member, float]] = {}

    def look(self, members: Sequence[Member]) -> None:
        """See who is there now; to be called with each change, as somebody may drain and be gone at once."""
        names = {member.name for member in members}
        for member in self._there:
            if member.name not in names:
                self._gone[member.name] = (member, time.monotonic())
        for name in names:
            self._gone.pop(name, None)
        self._there = members

    def tell(self) -> list[dict[str, Any]]:
        """Give those who went away in the last minutes."""
        now = time.monotonic()
        self._gone = {name: it for name, it in self._gone.items() if now - it[1] < _GONE_S}
        return [
            {
                "name": name,
                "pid": member.pid,
                "host": member.host,
                "version": member.version,
                "state": member.state,
                "gone_s_ago": round(now - gone_s, 1),
            }
            for name, (member, gone_s) in sorted(self._gone.items(), key=lambda it: natural_order(it[0]))
        ]


class ClusterWorkers:
    """A server of several workers. What one is asked to do is passed on to it.

    ``end`` has this process drain and end; whoever started it starts it again.
    """

    def __init__(
        self,
        *,
        members: Members,
        placement: Placement,
        forwarding: Forwarding,
        redis: RedisConfig,
        end: Callable[[], None],
    ) -> None:
        self.redis: RedisConfig | None = redis
        self._members = members
        self._placement = placement
        self._forwarding = forwarding
        self._end = end
        self._when_drained: list[Callable[[], None]] = []
        self._departed = _Departed()
        self.is_restarting = False
        """True once this worker ends because it was asked to restart."""
        members.listen(lambda: self._departed.look(members.alive()))

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when this worker is to be left by all clients, though it runs on."""
        self._when_drained.append(callback)
        if self._members.own.state == DRAINING:  # as may be asked of one that starts
            callback()

    def members(self) -> Sequence[Member]:
        """Give all that are alive; the figures of others are up to a second old, if Redis brings them."""
        return self._members.alive()

    def gone(self) -> Sequence[Mapping[str, Any]]:
        """Give those who went away in the last minutes, by what they last said."""
        return self._departed.tell()

    def heard_s_ago(self, member: Member) -> float:
        """Give when a worker's announcement was last seen to go on."""
        return round(self._members.heard_s_ago(member.name), 1)

    def own_name(self) -> str:
        """Give the name of this worker."""
        return self._members.own.name

    def worker_of(self, room_id: str) -> str:
        """Give the name of the worker that a room is placed on."""
        return self._placement.place(ROOM, room_id).name

    def actions(self, member: Member) -> Sequence[str]:
        """Give what can be asked of a worker.

        One whose clients nobody would take is not drained, and what nobody would start again is not ended.
        """
        drain = (DRAIN,) if self._is_drainable(member) else ()
        return (*drain, RESTART) if member.restarts else drain

    def _is_drainable(self, member: Member) -> bool:
        members = self._members
        left = [
            other
            for other in members.alive()
            if other.name != member.name
            and other.state != DRAINING
            and other.for_clients
            and (other is members.own or members.is_fresh(other.name))
            # A front brings connections to the workers that it started, and to no others.
            and (not member.fronted or (other.fronted and other.heads == member.heads))
        ]
        roles = [role for role in CLIENT_ROLES if member.takes(role)]
        return (
            member.state != DRAINING
            and bool(left)
            and all(any(it.takes(role) for it in left) for role in roles)
        )

    async def act(self, name: str, action: str) -> None:
        """Drain or restart a worker. Raises 404 for an unknown one, 400, 503 if it cannot be reached."""
        member = self._members.find(name)
        if member is None:
            raise not_found(f"There is no worker {name}")
        if action not in self.actions(member):
            why = "no other would take its work" if action == DRAIN else "nothing would start it again"
            raise MatrixError("M_UNKNOWN", 400, f"Worker {name} cannot {action}: {why}")
        if name != self.own_name():
            await self._ask(name, action)
        elif action == DRAIN:
            logger.warning("This worker is drained, as an administrator asked")
            for callback in self._when_drained:
                callback()
            await self._members.drain()
        else:
            logger.warning("This worker ends to be started again, as an administrator asked")
            self.is_restarting = True
            self._end()

    async def _ask(self, name: str, action: str) -> None:
        request = ForwardedRequest(
            method="POST",
            path=f"{API}/workers/{quote(name, safe='')}/{action}",
            query_string=b"",
            headers=[],
            body=b"{}",
            ip="",
            scheme="http",
            request_id="",
            requester=b"",
        )
        try:
            answer = await self._forwarding.ask(name, request, repeatable=True)
        except LinkLostError:
            answer = None
        if answer is None:
            raise MatrixError("M_UNKNOWN", 503, f"Worker {name} does not answer")
        if answer.status != 200:
            raise MatrixError("M_UNKNOWN", answer.status, f"Worker {name} refused to {action}")


class _Recent:
    """Keep an answer for a while, however many people look."""

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._value: Any = None
        self._until = 0.0
        self._of: object = None
        self._reading = asyncio.Lock()

    async def get(self, read: Callable[[], Awaitable[T]], of: object = None) -> T:
        """Give what ``read`` gave lately, of the same thing; else read it anew."""
        async with self._reading:
            if time.monotonic() >= self._until or self._of != of:
                self._value = await read()
                self._until, self._of = time.monotonic() + self._fresh_s, of
            value: T = self._value
        return value


class Overview:
    """Tell how the server is, in a form for JSON. ``record`` is to be called once a second."""

    def __init__(
        self,
        *,
        server_name: str,
        workers: Workers,
        tail: Tail,
        database: Database,
        clock: Clock,
    ) -> None:
        self.workers = workers
        self._server_name = server_name
        self._tail = tail
        self._database = database
        self._clock = clock
        self._history: deque[Moment] = deque(maxlen=HISTORY_S)
        self._postgresql = _Recent(_FRESH_S)
        self._size = _Recent(_SIZE_FRESH_S)
        self._redis = _Recent(_FRESH_S)
        self._rooms = _Recent(_FRESH_S)
        self._placing = Turns(1)

    async def status(self, *, with_history: bool) -> dict[str, Any]:
        """Give everything as it was in the last second, with the last minutes of the log if wanted.

        ``gone`` names the workers that went away in the last minutes.
        """
        workers = self.workers
        rooms, database, redis = await asyncio.gather(
            self._rooms.get(self._rooms_by_worker, of=[placing(it) for it in workers.members()]),
            self._postgresql.get(self._read_postgresql),
            self._redis.get(self._read_redis),
        )
        # Not before: who went away meanwhile is not both there and gone.
        members = sorted(workers.members(), key=lambda member: natural_order(member.name))
        writers = room_writers(members)
        status: dict[str, Any] = {
            "server_name": self._server_name,
            "version": ranvier.__version__,
            "now_ts": self._clock.now_ms(),
            "answered_by": workers.own_name(),
            "one_process": isinstance(workers, OneProcess),
            "workers": [self._worker(it, rooms[it.name], it in writers) for it in members],
            "gone": workers.gone(),
            "log": self._log(members),
            "database": database,
            "redis": redis,
        }
        if with_history:
            status["history"] = list(self._history)
        return status

    async def _rooms_by_worker(self) -> Counter[str]:
        rooms: Counter[str] = Counter()
        active = list(islice(self._tail.rooms_active(), _MAX_ROOMS))
        async for some in self._placing.slices(active, _ROOMS_AT_ONCE):
            rooms.update(map(self.workers.worker_of, some))
        return rooms

    def record(self) -> None:
        """Keep this second for those who will want the last minutes."""
        log = self._log(self.workers.members())
        self._history.append(
            (
                self._clock.now_ms(),
                log["rows_per_s"],
                log["commit_ms"],
                log["delivery_ms"],
                log["requests_per_s"],
            )
        )

    def _log(self, members: Sequence[Member]) -> dict[str, Any]:
        workers = self.workers
        own = next(it for it in members if it.name == workers.own_name())
        heard = [it for it in members if not is_silent(workers.heard_s_ago(it))]
        return describe_log(self._tail.pos, own.figures.rows_per_s, heard)

    def _worker(self, member: Member, rooms: int, takes_rooms: bool) -> dict[str, Any]:
        return describe_worker(
            member,
            now_ms=self._clock.now_ms(),
            heard_s_ago=self.workers.heard_s_ago(member),
            lag=member.figures.behind_rows,
            takes_rooms=takes_rooms,
            rooms=rooms,
            actions=self.workers.actions(member),
        )

    async def _read_postgresql(self) -> Mapping[str, Any]:
        if not self._database.reachable:
            return {"reachable": False, "error": "it cannot be connected to"}
        size = partial(self._size.get, partial(database_size, self._database))
        return await describe_postgresql(self._database, size)

    async def _read_redis(self) -> Mapping[str, Any] | None:
        redis = self.workers.redis
        return None if redis is None else await describe_redis(redis, self._clock.now_ms())
