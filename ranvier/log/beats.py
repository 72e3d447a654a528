"""The beat of a process: what it does every second is done in one waking, which costs more than the work."""

from __future__ import annotations

import asyncio
import random
from typing import Final

# Workers of a machine share its clock: each beats at a time of its own.
_PHASE_S: Final = random.random()
# A timer may come a little too early; the beat that it was set for is over then, too.
_EARLY: Final = 0.1


def until_beat_s(period_s: float, *, shift: float = 0.0) -> float:
    """Give in how many seconds to go on with what is done each ``period_s`` seconds.

    Periods of which one is a multiple of the other have beats in common, but for one that is shifted by a
    share of it.
    """
    phase_s = _PHASE_S + shift * period_s
    left_s = period_s - (asyncio.get_running_loop().time() - phase_s) % period_s
    return left_s if left_s > _EARLY * period_s else left_s + period_s
