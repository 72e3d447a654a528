"""Clients that were told more by another worker than this one has followed yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError

WAIT_S: Final = 10.0


class Ahead:
    """Bring this worker as far as a client is, so that no client goes back in time.

    ``head`` gives the position of the newest row of the log and raises 503 without a database.
    """

    def __init__(self, *, tail: Tail, head: Callable[[], Awaitable[int]]) -> None:
        self._tail = tail
        self._head = head

    async def reach(self, pos: int) -> None:
        """Wait until this worker has followed the log up to a position that a client names.

        Raises 503 ``M_UNKNOWN`` if it cannot. A position that the log does not have itself, as after a backup
        was put back, is let pass: that client is to go on from where the server is.
        """
        if self._tail.pos >= pos or await self._tail.wait_for(pos, WAIT_S):
            return
        if await self._head() >= pos:
            raise MatrixError("M_UNKNOWN", 503, "This worker is behind the others; try again")
