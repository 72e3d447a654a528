"""Whether this process stood still lately: it was stopped, or its machine was."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final

from ranvier.log.beats import until_beat_s

LONGEST_S: Final = 3.0
"""What is shorter is none: nobody takes a process for dead before (``cluster.members``)."""
_BEAT_S: Final = 1.0


class Standstill:
    """Know until when this process stood still for the last time. ``run`` must be running in a task of it."""

    def __init__(self) -> None:
        self._beat_s = time.monotonic()
        self._until_s = -math.inf

    async def run(self) -> None:
        """Beat, for ever."""
        while True:
            self.look()
            await asyncio.sleep(until_beat_s(_BEAT_S))

    def look(self) -> float:
        """Give when this process last went on after it had stood still (monotonic s); if never, -inf."""
        now = time.monotonic()
        if now - self._beat_s > LONGEST_S:
            self._until_s = now
        self._beat_s = now
        return self._until_s
