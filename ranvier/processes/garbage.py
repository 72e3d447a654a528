"""Python's collector of cyclic garbage, without the pauses of its full collections.

A full collection looks at every object that is held: at tens of thousands of events it stops everything for
a tenth of a second. But what was held for some seconds is mostly held for long, and nearly all objects go
without the collector, when nobody refers to them any more. So what survived the two young generations is
taken out of the collector's sight again and again (which copies nothing and takes no time), and it looks at
all only when nobody is there to notice.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Final

from ranvier.log.beats import until_beat_s

PERIOD_S: Final = 1.0
# Waking a room's listeners makes thousands of objects, and most are gone a moment later without the garbage
# collector. With Python's own threshold (700) it would look at them many times over; with this it takes a ms.
_THRESHOLDS: Final = (10_000, 2, 1_000_000)
_QUIET_SHARE: Final = 0.03
_QUIET_PERIODS: Final = 5
_SECONDS_BETWEEN: Final = 600.0


def settle() -> None:
    """Collect all garbage, and have the collector look at nothing of what is there any more."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def collect_garbage() -> None:
    """Keep the collector's pauses short for as long as this runs; then all is as Python has it."""
    thresholds = gc.get_threshold()
    settle()
    gc.set_threshold(*_THRESHOLDS)
    try:
        await _run()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _run() -> None:
    settled, quiet, cpu = time.monotonic(), 0, time.thread_time()
    while True:
        await asyncio.sleep(until_beat_s(PERIOD_S))
        if gc.get_count()[2] > 0:
            # What is young now may be cyclic garbage already, which would be kept.
            gc.collect(1)
            gc.freeze()
        spent, cpu = time.thread_time() - cpu, time.thread_time()
        quiet = quiet + 1 if spent < _QUIET_SHARE * PERIOD_S else 0
        if quiet >= _QUIET_PERIODS and time.monotonic() - settled > _SECONDS_BETWEEN:
            settle()
            settled, quiet = time.monotonic(), 0
