"""Whether this process stood still lately: it was stopped, or its machine was suspended.

A virtual machine that its host paused has no clock that tells.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ranvier.log.beats import until_beat_s
from ranvier.log.clock import steady_s
from ranvier.spec.errors import MatrixError

LONGEST_S: Final = 3.0
"""What is shorter is none: nobody takes a process for dead before (``cluster.members``)."""
READ_S: Final = 0.1
"""How long after a standstill something is read that may have lain in a socket meanwhile."""
_BEAT_S: Final = 1.0
_KEPT: Final = 100


def too_late() -> MatrixError:
    """Say that something newer may have been written since it was asked for (503)."""
    return MatrixError("M_UNKNOWN", 503, "This worker stood still meanwhile; try again")


class Standstill:
    """Know when this process stood still. ``run`` must be running in a task of it.

    ``pos`` gives how far it has followed the log.
    """

    def __init__(self, pos: Callable[[], int], clock: Callable[[], float] = steady_s) -> None:
        self._pos = pos
        self._clock = clock
        self._beat = clock(), pos()
        self._ends: deque[tuple[float, int]] = deque(maxlen=_KEPT)

    async def run(self) -> None:
        """Beat, for ever."""
        while True:
            self.look()
            await asyncio.sleep(until_beat_s(_BEAT_S))

    def look(self) -> None:
        """See whether this process stood still until now."""
        now = self._clock()
        beat_s, pos = self._beat
        if now - beat_s > LONGEST_S:
            self._ends.append((now + READ_S, pos))
        self._beat = now, self._pos()

    def has_just_ended(self) -> bool:
        """Tell whether what is read now may have been sent before this process stood still."""
        self.look()
        return self.pos_before(self._clock()) is not None

    def pos_before(self, asked_s: float) -> int | None:
        """Give how far the log was followed when this process first stood still after ``asked_s``.

        None if it did not. What others wrote meanwhile is behind that position. A request may have been sent
        before and been read only after it: what is read within a moment counts as asked for before.
        """
        return next((pos for end_s, pos in self._ends if end_s >= asked_s), None)
