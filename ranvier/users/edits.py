"""Changes that are computed on what is stored: one at a time, and again if another process was faster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import TypeVar

from ranvier.spec.errors import MatrixError
from ranvier.storage.account_data import ChangedMeanwhile

T = TypeVar("T")

_MAX_ATTEMPTS = 10
_PAUSE_S = 0.001  # at most, after the first attempt; after each other one twice as long
_MAX_WAITING = 50


class Edits:
    """Let one change of a thing be computed at a time in this process."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    async def make(self, thing: Hashable, edit: Callable[[], Awaitable[T]]) -> T:
        """Do ``edit``, which reads, computes and appends, and do it again while it raises ChangedMeanwhile.

        Raises what ``edit`` raises, 429 ``M_LIMIT_EXCEEDED`` when very many wait for the same thing, and 503
        when another process was faster again and again.
        """
        async with self.alone(thing):
            for attempt in range(_MAX_ATTEMPTS):
                try:
                    return await edit()
                except ChangedMeanwhile:
                    # One that has many changes to make would be faster each time, in the same step.
                    await asyncio.sleep(random.random() * _PAUSE_S * 2**attempt)
        raise MatrixError("M_UNKNOWN", 503, "This is changed from many sides at the moment; try again")

    @asynccontextmanager
    async def alone(self, thing: Hashable) -> AsyncIterator[None]:
        """Have nobody else of this process do something to a thing. Raises 429 ``M_LIMIT_EXCEEDED``."""
        lock, users = self._locks.get(thing) or (asyncio.Lock(), 0)
        if users >= _MAX_WAITING:
            raise MatrixError("M_LIMIT_EXCEEDED", 429, "Too many of these at once", retry_after_ms=1000)
        self._locks[thing] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[thing][1] - 1
            if users:
                self._locks[thing] = (lock, users)
            else:
                del self._locks[thing]
