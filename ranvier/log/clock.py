"""Time, passed in: so that tests and replays choose it. And when that was asked for which a task does."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Protocol

_asked_s: ContextVar[float] = ContextVar("asked_s")


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


def steady_s() -> float:
    """Give seconds that never go back, and go on while the machine is suspended (monotonic ones do not)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def note_asked(ago_s: float = 0.0) -> None:
    """Know that what this task does was asked for now, or so many seconds ago."""
    _asked_s.set(steady_s() - ago_s)


def asked_s() -> float:
    """Give when what this task does was asked for, by ``steady_s``; now, if it has not been noted."""
    noted = _asked_s.get(None)
    return steady_s() if noted is None else noted
