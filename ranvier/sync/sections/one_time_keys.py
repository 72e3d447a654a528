"""How many one-time keys the device that syncs has left, and which fallback keys are unused.

Both are said in every answer, so that a client never misses a change; that they are there is no news.
"""

from __future__ import annotations

from ranvier.sync.context import SyncContext
from ranvier.users.device_keys import Counts, KeyCounts


class OneTimeKeyCountsSection:
    """The key ``device_one_time_keys_count``."""

    def __init__(self, counts: KeyCounts) -> None:
        self._counts = counts

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give the numbers of keys by algorithm; None for a user without a device."""
        counts = await _counts(self._counts, context)
        return None if counts is None else counts.one_time

    async def since(self, context: SyncContext) -> bytes | None:
        """Give the numbers as they are now, changed or not."""
        return await self.initial(context)


class UnusedFallbackKeysSection:
    """The key ``device_unused_fallback_key_types``."""

    def __init__(self, counts: KeyCounts) -> None:
        self._counts = counts

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give the algorithms with an unused fallback key; None for a user without a device."""
        counts = await _counts(self._counts, context)
        return None if counts is None else counts.unused_fallback

    async def since(self, context: SyncContext) -> bytes | None:
        """Give the algorithms as they are now, changed or not."""
        return await self.initial(context)


async def _counts(counts: KeyCounts, context: SyncContext) -> Counts | None:
    if context.device_id is None:
        return None
    return await counts.of(context.user_id, context.device_id)
