"""Time, passed in: so that tests and replays choose it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tell the time of the day and a time that never goes back."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds since some fixed point."""


class SystemClock:
    """The clock of the machine."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds since some fixed point."""
        return time.monotonic()
