"""Nobody sees less than what was answered before, whichever worker they ask.

A request is answered once this worker has followed the log as far as any commit that was told of when the
request came: by the workers of this machine in shared memory, by those of other machines in the head of the
log itself, which many requests ask for together. It is asked, too, as long as it is not known who is there:
at a start, and without Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.lately import Lately
from ranvier.cluster.members import Members
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError
from ranvier.storage import log as storage
from ranvier.storage.database import Database

_PATIENCE_S: Final = 0.02  # what the bus brings is here by then; after that the log itself is asked
_LIMIT_S: Final = 1.0
_LONGEST_S: Final = 10.0


class Currency:
    """Bring this worker as far as the cluster was when a request came."""

    def __init__(
        self,
        *,
        board: HeadBoard,
        members: Members,
        tail: Tail,
        database: Database,
        hurry: Callable[[], None],
    ) -> None:
        self._board = board
        self._members = members
        self._tail = tail
        self._database = database
        self._hurry = hurry
        self._elsewhere = Lately(members, lambda it: it.heads != members.own.heads)
        self._asking: asyncio.Task[int] | None = None
        self._next: asyncio.Task[int] | None = None

    def is_current(self) -> bool:
        """Tell, without waiting, whether this worker surely has followed as far as any other."""
        return not self._asks_log and self._board.newest() <= self._tail.pos

    def catch_up(self) -> Awaitable[None] | None:
        """Give what is to be awaited before a request is answered; mostly nothing.

        That raises 503 ``M_UNKNOWN`` if this worker is too far behind.
        """
        if self._asks_log:
            return self._catch_up_with_all()
        newest = self._board.newest()
        return self._reach(newest) if newest > self._tail.pos else None

    @property
    def _asks_log(self) -> bool:
        """Whether somebody may commit of whom the memory of this machine does not tell."""
        return self._elsewhere.any or not self._members.knows_all

    async def _catch_up_with_all(self) -> None:
        newest = self._board.newest()
        with contextlib.suppress(MatrixError):  # without a database there are no new commits, either
            newest = max(newest, await self._head())
        if newest > self._tail.pos:
            await self._reach(newest)

    async def _reach(self, pos: int) -> None:
        if await self._tail.wait_for(pos, _PATIENCE_S):
            return
        self._hurry()
        if await self._tail.wait_for(pos, _LIMIT_S) or not await self._has_log(pos):
            return
        if not await self._tail.wait_for(pos, _LONGEST_S):
            raise MatrixError("M_UNKNOWN", 503, "This worker is behind the others; try again")

    async def _has_log(self, pos: int) -> bool:
        """Tell whether this worker can come so far; if not, what is known is better than nothing.

        It cannot without a database, nor if what is told is of another one.
        """
        try:
            async with asyncio.timeout(_LONGEST_S):
                return self._database.reachable and await self._head() >= pos
        except (MatrixError, TimeoutError):
            return False

    async def _head(self) -> int:
        """Give a head of the log that was read after this was called."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._read_head())
            return await asyncio.shield(self._asking)
        # What is under way may have been read before; the next is for all who come meanwhile.
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._asking))
        return await asyncio.shield(self._next)

    async def _read_after(self, before: asyncio.Task[int]) -> int:
        await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await self._read_head()

    async def _read_head(self) -> int:
        try:
            return await storage.head(self._database)
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None
