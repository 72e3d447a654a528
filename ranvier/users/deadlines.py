"""Deadlines of many keys, which are mostly moved further before they come."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

from ranvier.log.clock import Clock

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Keep one deadline for each key, in seconds of ``Clock.monotonic``.

    To move a deadline further costs a write to a dict: only when its old time comes it is sorted in anew.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: dict[K, float] = {}
        self._queued: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._tickets = itertools.count()
        self._sooner = asyncio.Event()

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def set(self, key: K, at: float) -> None:
        """Set or move the deadline of a key."""
        self._at[key] = at
        queued = self._queued.get(key)
        if queued is None or at < queued:
            self._push(key, at)
            if self._heap[0][2] == key:
                self._sooner.set()

    def drop(self, key: K) -> bool:
        """Forget a key; False if it had no deadline."""
        return self._at.pop(key, None) is not None

    def due(self) -> list[K]:
        """Take out the keys whose deadline has come, the earliest first."""
        now = self._clock.monotonic()
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now:
            queued, _, key = heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue  # the key was sorted in again for an earlier time
            del self._queued[key]
            at = self._at.get(key)
            if at is None:
                continue
            if at <= now:
                del self._at[key]
                found.append(key)
            else:
                self._push(key, at)
        return found

    async def wait(self, at_most_s: float | None = None) -> None:
        """Wait until a deadline may have come, or for ``at_most_s`` seconds."""
        self._sooner.clear()
        if self._heap:
            left_s = max(0.0, self._heap[0][0] - self._clock.monotonic())
            at_most_s = left_s if at_most_s is None else min(left_s, at_most_s)
        try:
            async with asyncio.timeout(at_most_s):
                await self._sooner.wait()
        except TimeoutError:
            return

    def _push(self, key: K, at: float) -> None:
        self._queued[key] = at
        heapq.heappush(self._heap, (at, next(self._tickets), key))
