"""What a worker of before may hold yet, whose front was killed: it is given the time to end."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ranvier.config import Config

logger = logging.getLogger(__name__)

_MARGIN_S: Final = 10.0
_LOOK_S: Final = 0.05
_HELD: Final = (errno.EADDRINUSE, errno.EUSERS)

T = TypeVar("T")


async def once_free(config: Config, take: Callable[[], T], *, fronted: bool) -> T:
    """Take something, as soon as a worker of before has left it where this one has a front.

    Raises ``OSError`` as ``take`` does.
    """
    limit_s = config.server.drain_timeout_ms / 1000 + _MARGIN_S if fronted else 0.0
    until = time.monotonic() + limit_s
    is_told = False
    while True:
        try:
            return take()
        except OSError as error:
            if error.errno not in _HELD or time.monotonic() >= until:
                raise
            if not is_told:
                logger.warning("%s; waiting up to %.0f s for that to end", error.strerror, limit_s)
                is_told = True
        await asyncio.sleep(_LOOK_S)
