"""Rate limits of the whole cluster: each worker tells the others what it let pass.

A request waits for nobody: it is counted here at once, and elsewhere about a millisecond later where that
matters, that is where a good part of somebody's burst was used since the others last heard of it; otherwise
somewhat later, together with everything else. While Redis is away each worker goes by what it let pass
itself, and that is not told afterwards: nobody would know what of it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

logger = logging.getLogger(__name__)

CHANNEL: Final = "limits"

_URGENT: Final = 0.125
"""This part of a burst is told at once."""

_GATHER_S: Final = 0.1
_MAX_GATHERED: Final = 10_000

_Count = tuple[str, str, float]
"""Limit, key, cost."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Count]).decode

Counted = Callable[[str, str, float], None]


class Broadcasts(Protocol):
    """Tell and hear things that may be lost; see ``RedisBus``."""

    def attend(self) -> None:
        """Bring at once what others tell."""

    def broadcast(self, name: str, body: bytes) -> None:
        """Tell the other processes something."""

    def on_broadcast(self, name: str, listener: Callable[[bytes], None]) -> None:
        """Have ``listener`` called with what other processes tell."""


class SharedCounts:
    """Carry the counts of a rate limiter to all workers (``count``), and theirs to it (``listen``)."""

    def __init__(self, broadcasts: Broadcasts) -> None:
        self._broadcasts = broadcasts
        self._listeners: list[Counted] = []
        self._gathered: dict[tuple[str, str], float] = {}
        self._timer: asyncio.Handle | None = None
        self._soon = False
        broadcasts.on_broadcast(CHANNEL, self._on_broadcast)

    def listen(self, listener: Counted) -> None:
        """Have ``listener`` called with what other workers counted: limit, key, cost."""
        self._listeners.append(listener)

    def count(self, name: str, key: str, cost: float, burst: float) -> None:
        """Take note of what this worker let pass; ``burst`` is what the limit allows at once."""
        self._broadcasts.attend()
        gathered = self._gathered
        total = gathered[name, key] = gathered.get((name, key), 0.0) + cost
        if total >= burst * _URGENT or len(gathered) >= _MAX_GATHERED:
            if not self._soon:
                self._soon = True
                self._schedule(asyncio.get_running_loop().call_soon(self._tell))
        elif self._timer is None:
            self._schedule(asyncio.get_running_loop().call_later(_GATHER_S, self._tell))

    def _schedule(self, handle: asyncio.Handle) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = handle

    def _tell(self) -> None:
        gathered, self._gathered = self._gathered, {}
        self._timer, self._soon = None, False
        self._broadcasts.broadcast(CHANNEL, _encode([(*key, cost) for key, cost in gathered.items()]))

    def _on_broadcast(self, body: bytes) -> None:
        try:
            counts = _decode(body)
        except msgspec.DecodeError as error:
            logger.warning("Counts of another worker are unreadable: %s", error)
            return
        for name, key, cost in counts:
            for listener in self._listeners:
                listener(name, key, cost)
