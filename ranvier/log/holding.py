"""Commits that others are told of together, as nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from ranvier.wire.log_rows import Batch

_HOLDS_S: Final = 0.25
_MOST_BYTES: Final = 1 << 19


class Attention(Protocol):
    """Say that somebody waits at this process, and know whether somebody does elsewhere."""

    def attend(self) -> bool:
        """Say that somebody waits here for a while; True if others may hold back what they wait for."""

    def hold(self) -> bool:
        """Say that something is held back here; False if somebody waits at another process, or may."""

    def release(self) -> None:
        """Say that nothing is held back here."""


class Holding:
    """Hold commits back while nobody waits elsewhere, a quarter second and ``_MOST_BYTES`` at most.

    ``tell`` is called with each piece, in order. Without ``attention`` nothing is held back.
    """

    def __init__(self, tell: Callable[[Batch], None]) -> None:
        self.attention: Attention | None = None
        self._tell = tell
        self._held: list[Batch] = []  # each follows the one before
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, batch: Batch) -> None:
        """Tell of a commit now, after what is held back, or hold it back."""
        size = sum(row.size for row in batch.rows)
        if self._held and (self._held[-1].last != batch.previous or self._bytes + size > _MOST_BYTES):
            self.end()
        self._held.append(batch)
        self._bytes += size
        if self.attention is None or size > _MOST_BYTES or not self.attention.hold():
            self.end()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_HOLDS_S, self.end)

    def end(self) -> None:
        """Tell what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return
        held, self._held, self._bytes = self._held, [], 0
        if self.attention is not None:
            self.attention.release()
        if len(held) == 1:
            self._tell(held[0])
        else:
            rows = [row for batch in held for row in batch.rows]
            self._tell(Batch(held[0].previous, held[-1].last, rows))
