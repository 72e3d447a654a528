"""Turns of the event loop: work that comes in many pieces goes on a few pieces at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

T = TypeVar("T")
Work = Callable[[], bool]
"""Does a piece of work and tells whether that was all of it; if not the rest comes later in the same turn."""

_LONGEST_S: Final = 0.004


class Turns:
    """Let ``at_once`` pieces of work go on in each turn of the event loop, in the order in which they asked.

    Everything that is ready runs before the loop does anything else: when many users ask at once for what
    takes a few milliseconds, or a message wakes a thousand of them, everybody else would wait for all of
    it, however small the pieces are. Pieces that were done when they were called are not counted, but timed:
    a turn begins none after ``_LONGEST_S``.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[Work] = deque()
        self._scheduled = False

    async def take(self) -> None:
        """Wait for a turn."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.give(partial(resolve, future))
        await future

    async def slices(self, items: Sequence[T], size: int) -> AsyncIterator[Sequence[T]]:
        """Give ``size`` items at a time, each slice in a turn of its own; few items at once."""
        if len(items) <= size:
            yield items
            return
        for first in range(0, len(items), size):
            await self.take()
            yield items[first : first + size]

    def give(self, work: Work) -> None:
        """Call something when it is its turn."""
        self._waiting.append(work)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        until = time.perf_counter() + _LONGEST_S
        left = self._at_once
        try:
            while self._waiting:
                left -= not self._waiting.popleft()()
                if not left or time.perf_counter() > until:
                    break
        finally:  # work that fails must not keep all others waiting for ever
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                asyncio.get_running_loop().call_soon(self._next)


def resolve(future: asyncio.Future[None]) -> bool:
    """Let whoever waits for a future go on, if they still wait. False: they have not gone on yet."""
    if not future.done():
        future.set_result(None)
    return False
