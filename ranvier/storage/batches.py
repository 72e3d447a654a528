"""Write many things together, of which one may not be fit to be written."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import asyncpg

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What is wrong with a value, and not with the database: asked again, it would answer the same.
_AT_FAULT: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, TypeError)


async def write_each(write: Callable[[Sequence[T]], Awaitable[object]], items: Sequence[T]) -> None:
    """Write items in one call; those that cannot be written are found by halving, logged and left out.

    Raises what is nobody's fault, such as DatabaseUnavailable; some may be written then, and may be again.
    """
    try:
        await write(items)
    except _AT_FAULT:
        if len(items) > 1:
            middle = len(items) // 2
            await write_each(write, items[:middle])
            await write_each(write, items[middle:])
        else:
            logger.exception("This cannot be written and is left out: %r", items)
