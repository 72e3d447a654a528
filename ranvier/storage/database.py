"""Connections to PostgreSQL: few, kept, and without the cost of a reset between uses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Final

import asyncpg

from ranvier.spec.errors import MatrixError

logger = logging.getLogger(__name__)

Connection = asyncpg.Connection
Record = asyncpg.Record

_CLOSE_S = 2.0
_AT_ONCE: Final = 3
_APART_S: Final = 0.05
# Whoever stands still in a transaction would have all others wait for what it has locked.
_IDLE_IN_TRANSACTION: Final = "3s"
_CONNECT: Mapping[str, Any] = {
    "timeout": 10,
    "command_timeout": 120,
    "statement_cache_size": 400,
    "server_settings": {
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION,
        # What stands between forgets a connection that is silent for some minutes, and tells nobody.
        "tcp_keepalives_idle": "60",
        "tcp_keepalives_interval": "10",
    },
}

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what the driver meets when a connection ends between two statements
    ConnectionError,
    OSError,
)
_STARTING = (
    asyncpg.OperatorInterventionError,  # it starts or stops, or a statement was canceled there
    asyncpg.ReadOnlySQLTransactionError,  # it is a standby, or was made read-only
    asyncpg.InsufficientResourcesError,  # its disk is full, or it has too many connections
)


def what_failed(error: BaseException) -> str:
    """Give what an error says, or its name where it says nothing, as a ``TimeoutError`` does."""
    return str(error) or type(error).__name__


class DatabaseUnavailable(MatrixError):
    """Say that PostgreSQL can not be reached now (503); whether a running commit took place is not known."""

    def __init__(self) -> None:
        super().__init__("M_UNKNOWN", 503, "The database is not reachable at the moment; try again")


class _NoneLeft(DatabaseUnavailable):
    """Say that PostgreSQL has no connection left for this process (503)."""


class _Loan:
    """One use of a connection. A class, as a generator would cost each statement a tenth more."""

    __slots__ = ("_connection", "_database", "_started")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection
        self._started = 0.0

    async def __aenter__(self) -> Connection:
        self._started = time.perf_counter()
        self._connection = await self._database.take()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _end_if_lost(self._connection, error)
        finally:
            self._database.give_back(self._connection, time.perf_counter() - self._started)


def _end_if_lost(connection: Connection, error: BaseException | None) -> None:
    """Raise DatabaseUnavailable if a use ended with an error that means so, and end the connection."""
    if not isinstance(error, (*_LOST, *_STARTING)):
        return
    if isinstance(error, asyncpg.InterfaceError) and not connection.is_closed():
        return  # a mistake of ours (a wrong argument), not a lost connection
    connection.terminate()
    raise DatabaseUnavailable from error


class KeptConnection:
    """One connection, lent until ``give_back``, for what is asked again and again, one at a time.

    What PostgreSQL and the driver learn of a statement they learn for each connection, and of a large one
    that takes as long as many uses of it. It is opened with its first use, and again after it was lost.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        """Give the connection. Raises DatabaseUnavailable when it can not be had, or is lost in use."""
        if self._connection is not None and self._connection.is_closed():
            self.give_back()
        if self._connection is None:
            self._connection = await self._database.take()
            self._database.kept += 1
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._connection is not None
        _end_if_lost(self._connection, error)

    def give_back(self) -> None:
        """Keep it no longer; the next use takes another one."""
        if self._connection is not None:
            self._database.kept -= 1
            self._database.give_back(self._connection, 0.0)
            self._connection = None


class Database:
    """Lend connections, last used first, at most ``size`` of them.

    Beyond a few they are opened one by one, now and then: a new one costs PostgreSQL a process that has
    everything to learn, so those who come at once are mostly served sooner by what is given back meanwhile.

    ``connect`` holds arguments of ``asyncpg.connect``. A connection that broke is thrown away;
    a read on a connection that turns out to be dead is tried once more on a fresh one.
    ``spent`` is called with the seconds of each use, for the request log.
    """

    def __init__(
        self, connect: Mapping[str, Any], *, size: int, spent: Callable[[float], None] | None = None
    ) -> None:
        self._connect = {**_CONNECT, **connect}
        self._idle: list[Connection] = []
        self._size = size
        self._count = 0  # those that are lent or idle
        self._opening = False
        self._open_from = 0.0  # the next one, by the event loop's clock
        self._looking: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._spent = spent
        self._closed = False
        self._used = 0
        self.kept = 0
        """How many of those that are lent do not come back soon."""
        self._refused = False
        self.reachable = True
        """False since a connection could not be had, until one can again."""

    @property
    def used(self) -> int:
        """Give the number of connections that are lent."""
        return self._used

    @property
    def idle(self) -> int:
        """Give the number of connections that are open and not lent."""
        return len(self._idle)

    async def close(self) -> None:
        """Close every idle connection and lend no more."""
        self._closed = True
        idle, self._idle = self._idle, []
        # One that does not answer is cut off, and that is no news to anybody any more.
        await asyncio.gather(*(it.close(timeout=_CLOSE_S) for it in idle), return_exceptions=True)

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend one connection. Raises DatabaseUnavailable when it can not be had, or is lost in use."""
        return _Loan(self)

    async def take(self) -> Connection:
        """Give a connection, which is to be given back; ``connection`` sees to both."""
        connection = self._take_idle()
        while connection is None:
            next_one = self._open_one() if self._may_open() else self._wait()
            connection = await next_one or self._take_idle()
        self._used += 1
        return connection

    def give_back(self, connection: Connection, seconds: float) -> None:
        """Take a connection back that was used for some seconds."""
        self._used -= 1
        if not connection.is_closed() and (self._closed or connection.is_in_transaction()):
            # A caller that was cancelled in the middle of a transaction leaves it open.
            connection.terminate()
        self._lend_next(connection)
        if self._spent is not None:
            self._spent(seconds)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend one connection inside of a transaction (read committed).

        It is lost, with what was done in it, if for some seconds nothing is asked for in it.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """Run one statement and give all of its rows."""
        records: list[Record] = await self._once_more("fetch", sql, args)
        return records

    async def fetchrow(self, sql: str, *args: Any) -> Record | None:
        """Run one statement and give its first row."""
        record: Record | None = await self._once_more("fetchrow", sql, args)
        return record

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """Run one statement and give the first column of its first row."""
        return await self._once_more("fetchval", sql, args)

    async def execute(self, sql: str, *args: Any) -> int:
        """Run one writing statement and give the number of rows that it touched."""
        async with self.connection() as connection:
            status: str = await connection.execute(sql, *args)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def _once_more(self, method: str, sql: str, args: Sequence[Any]) -> Any:
        # Only statements whose repetition is harmless when the connection was dead before they began.
        try:
            async with self.connection() as connection:
                return await getattr(connection, method)(sql, *args)
        except _NoneLeft:
            raise
        except DatabaseUnavailable:
            self._drop_idle()
            async with self.connection() as connection:
                return await getattr(connection, method)(sql, *args)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():  # PostgreSQL said goodbye while nobody used it
                return connection
            self._count -= 1
        return None

    def _drop_idle(self) -> None:
        # When one connection died PostgreSQL has mostly restarted: the others are dead as well.
        self._count -= len(self._idle)
        while self._idle:
            self._idle.pop().terminate()

    def _lend_next(self, connection: Connection) -> None:
        """Give a connection to whoever has waited longest, or keep it; one that is closed makes room."""
        if connection.is_closed():
            self._count -= 1
            self._look_later()
        elif not self._tell_next(connection):
            self._idle.append(connection)

    def _tell_next(self, connection: Connection | None) -> bool:
        """Give a connection to whoever has waited longest, or have them look again; False if nobody waits."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    async def _wait(self) -> Connection | None:
        """Wait for a connection that is given back; None if it is time to look again."""
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._look_later()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                given = waiter.result()  # it came just now
                if given is None:
                    self._tell_next(None)
                else:
                    self._lend_next(given)
            raise

    def _may_open(self) -> bool:
        is_due = asyncio.get_running_loop().time() >= self._open_from
        return is_due and not self._opening and self._count < self._size

    def _look_later(self) -> None:
        """Have whoever waits longest open the next one when that is due."""
        if self._looking is None and self._waiting and not self._opening and self._count < self._size:
            self._looking = asyncio.get_running_loop().call_at(self._open_from, self._look)

    def _look(self) -> None:
        self._looking = None
        self._tell_next(None)

    async def _open_one(self) -> Connection | None:
        """Open a connection; None if PostgreSQL has none left, so that one of ours is to be waited for.

        If none can be had, all who wait for one are told.
        """
        self._opening, pause_s = True, _APART_S
        try:
            connection = await self._open()
            self._count += 1
            if self._count < _AT_ONCE:
                pause_s = 0.0
        except DatabaseUnavailable as error:
            if isinstance(error, _NoneLeft) and self._count > self.kept:
                return None
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(DatabaseUnavailable())
            raise
        else:
            return connection
        finally:
            self._opening = False
            self._open_from = asyncio.get_running_loop().time() + pause_s
            self._look_later()

    async def _open(self) -> Connection:
        try:
            connection: Connection = await asyncpg.connect(**self._connect)
        except (*_LOST, *_STARTING) as error:
            none_left = isinstance(error, asyncpg.TooManyConnectionsError)
            reachable = none_left and self._count > 0
            # Once, and not for each request that meets it.
            if self.reachable and not reachable:
                logger.error("PostgreSQL can not be reached: %s", what_failed(error))
            elif reachable and not self._refused:
                logger.warning("PostgreSQL gives no more than %d connections: %s", self._count, error)
            self._refused, self.reachable = True, reachable
            raise (_NoneLeft if none_left else DatabaseUnavailable) from error
        if not self.reachable:
            logger.info("PostgreSQL can be reached again")
        self._refused, self.reachable = False, True
        return connection
