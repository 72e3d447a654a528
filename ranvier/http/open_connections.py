"""What a listener has open, and how much that may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ranvier.http.exchange import Exchange
from ranvier.http.heads import RepeatedHeads

if TYPE_CHECKING:
    from ranvier.http.connection import Connection

Move = Callable[[str, int, bytes], bool]
"""Has the worker of a name serve a connection from now on; False if it cannot be asked.

Given its file descriptor, which is closed afterwards, and what was read of its next request.
"""

Successor = Callable[[bytes], str | None]
"""Names the worker that goes on with a connection, by what was read of its next request; None if none can."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bound a connection: the head of a request in bytes and seconds, idle time, and connections in all."""

    max_head_bytes: int = 64 * 1024
    head_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    max_connections: int = 20_000


@dataclass(slots=True)
class Open:
    """What a listener has open: its connections, and the requests that are being answered.

    ``move`` is there if its connections may go on to other workers, ``successor`` once all of them are to.
    ``ending`` once each of them has one more answer at most.
    """

    heads: RepeatedHeads = field(default_factory=RepeatedHeads)
    connections: set[Connection] = field(default_factory=set)
    exchanges: set[Exchange] = field(default_factory=set)
    move: Move | None = None
    successor: Successor | None = None
    ending: bool = False
    _none_left: asyncio.Future[None] | None = None
    _all_gone: asyncio.Future[None] | None = None

    def answered(self, exchange: Exchange) -> None:
        """Forget a request."""
        self.exchanges.discard(exchange)
        if self._none_left is not None and not self.exchanges and not self._none_left.done():
            self._none_left.set_result(None)

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if self._all_gone is not None and not self.connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def wait_gone(self, timeout_s: float) -> None:
        """Wait until no connection is left, but no longer than ``timeout_s`` seconds."""
        if self.connections and timeout_s > 0:
            self._all_gone = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_gone], timeout=timeout_s)

    async def wait_answered(self, timeout_s: float) -> bool:
        """Wait until no request is being answered; False after ``timeout_s`` seconds."""
        if self.exchanges:
            self._none_left = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._none_left], timeout=timeout_s)
        return not self.exchanges
