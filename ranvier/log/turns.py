"""Turns of the event loop: work that comes in many pieces goes on a few pieces at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Let ``at_once`` pieces of work go on in each turn of the event loop, in the order in which they asked.

    Everything that is ready runs before the loop does anything else: when many users ask at once for what
    takes a few milliseconds, or a message wakes a thousand of them, everybody else would wait for all of
    it, however small the pieces are.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[Callable[[], None]] = deque()

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

    def give(self, work: Callable[[], None]) -> None:
        """Call something when it is its turn. It must not raise."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        self._waiting.append(work)

    def _next(self) -> None:
        for _ in range(min(self._at_once, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)


def resolve(future: asyncio.Future[None]) -> None:
    """Let whoever waits for a future go on, if they still wait."""
    if not future.done():
        future.set_result(None)
