"""Work in the background that goes on when it fails: its end would be noticed late, and by everybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ranvier.cluster.leases import LeaseLostError
from ranvier.log.clock import Clock

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0
_STEADY_S: Final = 600.0


async def persevere(work: Callable[[], Awaitable[None]], name: str, clock: Clock) -> None:
    """Do something until it ends by itself; when it fails it is begun anew, after a pause that grows.

    Raises LeaseLostError, which says that it is another process's now.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        begun_s = clock.monotonic()
        try:
            await work()
            return
        except LeaseLostError:
            raise
        except Exception:
            if clock.monotonic() - begun_s > _STEADY_S:
                pause_s = FIRST_PAUSE_S
            logger.exception("%s failed unexpectedly; it is begun anew in %.0f s", name, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
