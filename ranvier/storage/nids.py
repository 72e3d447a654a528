"""Integers for rooms, events and snapshots: given out in the process, reserved in blocks."""

from __future__ import annotations

import asyncio

from ranvier.storage.database import Database

_BLOCK = 4096  # as in the sequence nid_block
_NEXT = "SELECT nextval('nid_block')"


class Nids:
    """Give out integers that no other process gives out. Call ``reserve`` before taking many."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._next = 0
        self._end = 0
        self._following: int | None = None
        self._lock = asyncio.Lock()

    async def reserve(self, count: int = 1024) -> None:
        """Make sure that ``take`` can be called ``count`` times (at most 4096) without waiting."""
        if self._available >= count:
            return
        async with self._lock:
            if self._available < count:
                self._following = await self._database.fetchval(_NEXT)

    @property
    def _available(self) -> int:
        return self._end - self._next + (_BLOCK if self._following is not None else 0)

    def take(self) -> int:
        """Give the next integer."""
        if self._next == self._end:
            assert self._following is not None, "reserve() was not called for this many"
            self._next, self._end, self._following = self._following, self._following + _BLOCK, None
        nid = self._next
        self._next += 1
        return nid
