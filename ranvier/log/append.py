"""Append to the log: what is waiting becomes one batch, one round trip and one commit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ranvier.log.bus import Bus
from ranvier.log.clock import Clock, asked_s
from ranvier.log.standstill import Standstill, too_late
from ranvier.log.turns import resolve
from ranvier.spec.errors import MatrixError
from ranvier.storage import log as storage
from ranvier.storage.account_data import ChangedMeanwhile
from ranvier.storage.database import Database, DatabaseUnavailable, KeptConnection
from ranvier.storage.log import AlreadyStored, Appended, RoomWrite
from ranvier.wire.log_rows import Batch, LogRow, Row

logger = logging.getLogger(__name__)

_MAX_QUEUE = 20_000
_GATHER_S = 0.002
_LINE_S = 0.02
_LOOK_S = 0.002


class HeadMoved(Exception):
    """Say that somebody else wrote to the room first: nothing was written, compute again.

    What they wrote is not behind ``pos`` in the log.
    """

    def __init__(self, pos: int) -> None:
        super().__init__(pos)
        self.pos = pos


class TransactionRepeated(Exception):
    """Say that a transaction id of the write was used before: nothing was written.

    What was written with it is not behind ``pos`` in the log.
    """

    def __init__(self, pos: int) -> None:
        super().__init__(pos)
        self.pos = pos


class _Pending:
    __slots__ = ("asked_s", "done", "may_be_late", "room", "rows")

    def __init__(self, room: RoomWrite | None, rows: Sequence[LogRow], *, may_be_late: bool) -> None:
        self.room = room
        self.rows = rows
        self.may_be_late = may_be_late
        self.asked_s = asked_s()
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def size(self) -> int:
        return len(self.rows) + (len(self.room.events) if self.room else 0)


class Line(Protocol):
    """The line in which the workers of a machine stand to commit, one after the other."""

    def may_commit(self) -> bool:
        """Tell whether it is this worker's turn; if not it is in the line from now on."""

    def begin_commit(self) -> None:
        """Leave the line and commit."""

    def end_commit(self) -> None:
        """Let the next one commit."""


class Appender:
    """Group-commit the writes of this process, one commit in flight.

    While a commit is under way the next batch gathers, so the number of commits follows the speed of
    the disk and not the number of writes. ``run`` must be running in a task of the process.
    ``committed`` is called with the position of each commit before anybody is told of it, and with that of
    one that others made, if somebody is about to be answered who may look for what is in it. Where other
    processes commit too, ``line`` says when it is this one's turn; nothing but speed hangs on it. There,
    ``standstill`` knows which rows come too late: nothing compares them, and they would replace newer ones.
    """

    def __init__(
        self,
        *,
        database: Database,
        bus: Bus,
        clock: Clock,
        max_batch: int = 500,
        committed: Callable[[int], None] | None = None,
        line: Line | None = None,
        standstill: Standstill | None = None,
    ) -> None:
        self._database = database
        self._committing = KeptConnection(database)
        self._bus = bus
        self._clock = clock
        self._max_batch = max_batch
        self._committed = committed
        self._line = line
        self.standstill = standstill
        self._told: asyncio.Future[None] | None = None
        if line is not None:
            bus.listen(batches=self._on_batch)
        self._queue: list[_Pending] = []
        self._ended = False
        self._wake = asyncio.Event()
        self.commits = 0
        """How many commits this process made, and how many seconds they took."""
        self.commit_s = 0.0
        self.overtaken = 0
        """How many writes to a room were given back, as another process had written there first."""

    @property
    def queued(self) -> int:
        """Give the number of writes that wait for the next commit."""
        return len(self._queue)

    async def append_room(self, write: RoomWrite) -> int:
        """Write to one room and give the log position of its last event.

        Raises HeadMoved, TransactionRepeated (nothing was written), or DatabaseUnavailable (503; the
        write may or may not have taken place).
        """
        return await self._submit(_Pending(write, (), may_be_late=True))  # heads are compared

    async def append_rows(self, rows: Sequence[LogRow], *, may_be_late: bool = False) -> int:
        """Write rows that are not events and give the position of the last one.

        Raises 503: they were not written if this process stood still since they were asked for, and may have
        been if the database is not reachable. Rows that ``may_be_late`` are written all the same: they
        replace nothing that may be newer, or the commit looks for that.
        """
        assert rows, "nothing to write has no position"
        return await self._submit(_Pending(None, rows, may_be_late=may_be_late))

    def check_in_time(self) -> None:
        """Raise 503 if this process stood still since what this task does was asked for.

        For what is not written to the log.
        """
        if self.standstill is not None:
            self.standstill.look()
            if self.standstill.pos_before(asked_s()) is not None:
                raise too_late()

    async def note_others(self) -> int:
        """Note and give how far others committed, of whom one may have died before it told anybody."""
        pos = await storage.head(self._database)
        if self._committed is not None:
            self._committed(pos)
        return pos

    async def _submit(self, pending: _Pending) -> int:
        if self._ended:
            raise DatabaseUnavailable
        if len(self._queue) >= _MAX_QUEUE:
            raise MatrixError("M_UNKNOWN", 503, "The server has too much to write at the moment; try again")
        self._queue.append(pending)
        self._wake.set()
        # A caller that goes away ends this wait and not its write, which may be in a commit already.
        return await pending.done

    async def run(self) -> None:
        """Commit batch after batch, for ever. Once this ends nothing is written, and who waits is told."""
        try:
            await self._prepare()
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    # What others committed before is told meanwhile.
                    self._bus.attend()
                    await self._gather()
                    if self._line is None:
                        await self._commit_or_tell(self._take())
                    else:
                        await self._commit_in_turn(self._line)
        finally:
            self._ended = True
            self._committing.give_back()
            for pending in self._queue:
                _fail(pending, DatabaseUnavailable())
            self._queue.clear()

    async def _prepare(self) -> None:
        """Have the connection ready before the first one writes, who would wait for that."""
        try:
            async with self._committing as connection:
                await storage.prepare_append(connection)
        except DatabaseUnavailable:
            logger.debug("The database is not there yet; whoever writes is told")

    async def _commit_in_turn(self, line: Line) -> None:
        await self._stand_in(line)
        line.begin_commit()
        try:
            await self._commit_or_tell(self._take())
        finally:
            line.end_commit()

    async def _stand_in(self, line: Line) -> None:
        """Wait until it is our turn: what others committed, the bus tells; and we look now and then."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LINE_S
        while not line.may_commit() and loop.time() < until:
            self._told = loop.create_future()
            timer = loop.call_later(_LOOK_S, resolve, self._told)
            try:
                await self._told
            finally:
                timer.cancel()
                self._told = None

    def _on_batch(self, batch: Batch) -> None:
        if self._told is not None:
            resolve(self._told)

    async def _gather(self) -> None:
        """Let those who are about to write join the batch: a commit costs the same for one as for twenty.

        As long as each turn of the event loop brings more, others are on their way; when none does, or after
        ``_GATHER_S``, the batch goes. A write that comes alone waits for one empty turn.
        """
        until = time.perf_counter() + _GATHER_S
        before = 0
        while before < len(self._queue) < self._max_batch and time.perf_counter() < until:
            before = len(self._queue)
            await asyncio.sleep(0)

    def _take(self) -> list[_Pending]:
        size = taken = 0
        rooms: set[int] = set()
        for pending in self._queue:
            # Two writes to one new head can not both succeed: the second waits for the next batch.
            if (taken and size + pending.size > self._max_batch) or (
                pending.room is not None and pending.room.room_nid in rooms
            ):
                break
            if pending.room is not None:
                rooms.add(pending.room.room_nid)
            size += pending.size
            taken += 1
        batch = self._queue[:taken]
        del self._queue[:taken]
        return batch if self.standstill is None else _in_time(batch, self.standstill)

    async def _commit_or_tell(self, batch: list[_Pending]) -> None:
        """Commit a batch; whoever waits for it is told, too, if this is broken off."""
        try:
            if batch:
                await self._commit(batch)
        except asyncio.CancelledError:
            for pending in batch:
                _fail(pending, DatabaseUnavailable())
            raise

    async def _commit(self, batch: list[_Pending]) -> None:
        started = time.perf_counter()
        try:
            appended = await self._write(batch)
        except DatabaseUnavailable as error:
            for pending in batch:
                _fail(pending, error)
            return
        except Exception as error:
            if len(batch) > 1:
                # One bad write must not take the others with it.
                half = len(batch) // 2
                for part in (batch[:half], batch[half:]):
                    await self._commit(part)
                return
            if not isinstance(error, (ChangedMeanwhile, AlreadyStored)):
                logger.exception("A write to the log failed")
            _fail(batch[0], error)
            return
        self.commits += 1
        self.commit_s += time.perf_counter() - started
        await self._publish(batch, appended)

    async def _write(self, batch: list[_Pending]) -> Appended:
        rooms = [pending.room for pending in batch if pending.room is not None]
        rows = [row for pending in batch for row in pending.rows]
        async with self._committing as connection:
            return await storage.append(connection, rooms, rows, self._clock.now_ms())

    async def _publish(self, batch: list[_Pending], appended: Appended) -> None:
        committed: list[Row] = []
        pos = appended.before
        moved, repeated = set(appended.moved), set(appended.repeated)
        for pending in batch:
            if pending.room is None or pending.room.room_nid in moved or pending.room.room_nid in repeated:
                continue
            for event in pending.room.events:
                pos += 1
                event.pos = pos
            committed.extend(pending.room.events)
        for pending in batch:
            for row in pending.rows:
                pos += 1
                row.pos = pos
            committed.extend(pending.rows)
        if committed:
            if self._committed is not None:
                self._committed(pos)
            await self._bus.publish(Batch(appended.before, pos, committed))
        elif repeated and self._committed is not None:
            self._committed(appended.before)  # a worker that died may have told nobody
        for pending in batch:
            if pending.room is None:
                _succeed(pending, pending.rows[-1].pos)
            elif pending.room.room_nid in moved:
                self.overtaken += 1
                _fail(pending, HeadMoved(appended.before))
            elif pending.room.room_nid in repeated:
                _fail(pending, TransactionRepeated(appended.before))
            else:
                _succeed(pending, pending.room.events[-1].pos)


def _in_time(batch: list[_Pending], standstill: Standstill) -> list[_Pending]:
    """Give what of a batch may be written, though this process may have stood still.

    While it did, another process may have done in its place what a client asked for, and then what is newer.
    """
    standstill.look()
    in_time: list[_Pending] = []
    for pending in batch:
        if not pending.may_be_late and standstill.pos_before(pending.asked_s) is not None:
            _fail(pending, too_late())
        else:
            in_time.append(pending)
    return in_time


def _succeed(pending: _Pending, pos: int) -> None:
    if not pending.done.done():
        pending.done.set_result(pos)


def _fail(pending: _Pending, error: Exception) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)
        pending.done.exception()  # nobody may be left to look at it
