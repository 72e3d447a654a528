"""Follow the log: apply what the bus brings to the tail, and read from PostgreSQL what it did not bring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ranvier.log.bus import Bus
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError
from ranvier.storage import log as storage
from ranvier.storage.database import Database
from ranvier.wire.log_rows import Batch

logger = logging.getLogger(__name__)

_GAP_PATIENCE_S = 0.01  # writers publish out of order: what is missing mostly comes at once
_PIECE = 1000
_MAX_EARLY = 1000
_POLL_S = 0.2
"""How often the head of the log is read while the bus brings nothing."""


class Follower:
    """Keep the tail at the head of the log.

    The bus is only a hint: a message that does not continue where the tail stands is kept for some
    milliseconds, then the gap is read from the database. Every ``heartbeat_s`` seconds in which the bus
    brought nothing the head of the log is read, and what was there one such time before: the bus may be about
    to bring what is newer, and knows more of an event than the database does, without which its room has to
    be read anew. So a lost last message is noticed after three times that at most; without a bus, it is read
    at once and more often.
    ``committed`` is called with the position of what was read, whose writer may have told nobody, before
    anybody sees it.
    """

    def __init__(
        self,
        *,
        database: Database,
        bus: Bus,
        tail: Tail,
        heartbeat_s: float = 1.0,
        warm_rows: int = 5000,
        committed: Callable[[int], None] | None = None,
    ) -> None:
        self._database = database
        self._bus = bus
        self._tail = tail
        self._heartbeat_s = heartbeat_s
        self._warm_rows = warm_rows
        self._committed = committed
        self._early: dict[int, Batch] = {}
        self._head = 0
        self._gap = asyncio.Event()
        self._quiet = True
        self._hurried = False
        self._head_before = 0  # when the bus had brought nothing the last time
        bus.listen(batches=self._on_batch)
        tail.on_wanted(bus.attend)

    @property
    def behind(self) -> int:
        """Give the number of rows that are known to be committed and are not in the tail yet."""
        return max(0, self._head - self._tail.pos)

    async def start(self) -> None:
        """Fill the tail with the newest rows, so that clients that come back are answered from memory."""
        while True:
            pruned, head = await storage.bounds(self._database)
            self._tail.reset(max(pruned, head - self._warm_rows))
            try:
                return await self._read_upto(head)
            except storage.LogPruned as error:
                logger.info("Beginning anew: %s", error)  # more was removed meanwhile

    def hurry(self) -> None:
        """Look at the log now: there is more in it than the bus has brought."""
        self._hurried = True
        self._gap.set()

    async def run(self) -> None:
        """Fill gaps and beat, for ever. Raises LogPruned if this process stood still for days."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._gap.wait()
            except TimeoutError:
                pass
            else:
                missing_after = self._tail.pos
                await asyncio.sleep(_GAP_PATIENCE_S)
                if self._early and self._tail.pos != missing_after:
                    continue  # what was missing came; what is missing now may come, too
            self._gap.clear()
            try:
                await self._catch_up()
            except storage.LogPruned as error:
                logger.critical("This process stood still for days and ends, to be started anew: %s", error)
                raise
            except (MatrixError, TimeoutError) as error:
                logger.warning("Can not read the log: %s", error)
                self._hurried = True  # as soon as it can be
                await asyncio.sleep(self._heartbeat_s)

    @property
    def _interval_s(self) -> float:
        return self._heartbeat_s if self._bus.connected else min(_POLL_S, self._heartbeat_s)

    async def _catch_up(self) -> None:
        hurried, self._hurried = self._hurried or not self._bus.connected, False
        if self._early:
            told = list(self._early.items())
            head = await storage.head(self._database)
            for previous, batch in told:
                if batch.last > head:  # what is told was committed before: this is no message of ours
                    self._early.pop(previous, None)
                    self._head = head
            await self._read_upto(min(self._early, default=self._tail.pos))
            self._apply_early()
            return
        if self._quiet or hurried or self._head > self._tail.pos:
            head = self._head = await storage.head(self._database)
            upto = head if hurried else min(head, self._head_before)
            self._head_before = head
            if upto > self._tail.pos:
                await self._read_upto(upto)
        self._quiet = True

    def _on_batch(self, batch: Batch) -> None:
        self._quiet = False
        self._head = max(self._head, batch.last)
        self._take(batch)
        if self._early:
            self._apply_early()

    def _take(self, batch: Batch) -> None:
        if batch.previous == self._tail.pos:
            self._tail.apply(batch.rows, batch.last)
        elif batch.previous > self._tail.pos:
            early = self._early.get(batch.previous)
            # What is dropped here is in the database. One that only tells the head brings less than another.
            if len(self._early) < _MAX_EARLY and (early is None or early.last < batch.last):
                self._early[batch.previous] = batch
            self._gap.set()
        elif batch.last > self._tail.pos:  # a part of it was read from the database meanwhile
            rows = [row for row in batch.rows if row.pos > self._tail.pos]
            self._tail.apply(rows, batch.last)

    def _apply_early(self) -> None:
        for previous in sorted(self._early):
            if previous > self._tail.pos:
                self._gap.set()
                return
            self._take(self._early.pop(previous))

    async def _read_upto(self, head: int) -> None:
        while (pos := self._tail.pos) < head:
            upto = min(head, pos + _PIECE)
            rows = await storage.rows_between(self._database, pos, upto)
            if self._committed is not None:
                self._committed(upto)
            # The bus may have brought some of it while the database answered.
            self._tail.apply([row for row in rows if row.pos > self._tail.pos], max(upto, self._tail.pos))
