"""The bus: carries each committed batch, and what is never stored, to every process.

There are two forms of one interface: within the process (here), and Redis for several processes.
A bus may lose, repeat or reorder messages: ``log.follow`` makes up for all of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from ranvier.wire.log_rows import Batch


class Ephemeral(msgspec.Struct, array_like=True, frozen=True):
    """Something that is told once and never stored: who types, who is online.

    ``count`` orders them within ``epoch`` (a new one whenever the counter began anew).
    """

    kind: str
    key: str
    body: bytes
    count: int
    epoch: str


RESET: Final = "reset"
"""The kind of what is told, with count 0, when an epoch begins: all that was said before is void."""

BatchListener = Callable[[Batch], None]
EphemeralListener = Callable[[Ephemeral], None]


class Bus(Protocol):
    """Carry messages from every process to every process, the sender included."""

    @property
    def connected(self) -> bool:
        """Whether messages are coming in; while they are not, followers ask the database more often."""

    async def publish(self, batch: Batch) -> None:
        """Tell everybody of a committed batch; never fails, and never waits for somebody."""

    async def publish_ephemeral(self, kind: str, key: str, body: bytes) -> Ephemeral | None:
        """Give the next count to something ephemeral and tell everybody.

        The listeners of this process were called when it returns. None if it could not be told.
        """

    def ephemeral_now(self) -> tuple[int, str]:
        """Give the newest ``(count, epoch)`` that this process knows of."""

    def attend(self) -> None:
        """Bring everything at once for some seconds: somebody waits for it."""

    def relax_unless(self, is_busy: Callable[[], bool]) -> None:
        """Bring things some times a second whenever everybody who was given here says no, until ``attend``.

        Whoever must hear of commits at once, be it that no request waits, is to be given here, and calls
        ``attend`` when that begins.
        """

    def listen(
        self, batches: BatchListener | None = None, ephemerals: EphemeralListener | None = None
    ) -> None:
        """Have these called, in order of arrival, on the event loop."""


class LocalBus:
    """The bus of a server that is one process: a function call."""

    def __init__(self) -> None:
        self._batch_listeners: list[BatchListener] = []
        self._ephemeral_listeners: list[EphemeralListener] = []
        self._count = 0
        self._epoch = secrets.token_hex(4)
        self.connected = True

    async def publish(self, batch: Batch) -> None:
        """Tell everybody of a committed batch."""
        for listener in self._batch_listeners:
            listener(batch)

    async def publish_ephemeral(self, kind: str, key: str, body: bytes) -> Ephemeral:
        """Give the next count to something ephemeral and tell everybody."""
        self._count += 1
        message = Ephemeral(kind, key, body, self._count, self._epoch)
        for listener in self._ephemeral_listeners:
            listener(message)
        return message

    def ephemeral_now(self) -> tuple[int, str]:
        """Give the newest ``(count, epoch)`` that this process knows of."""
        return self._count, self._epoch

    def attend(self) -> None:
        """Bring everything at once, as ever."""

    def relax_unless(self, is_busy: Callable[[], bool]) -> None:
        """Bring everything at once, as ever."""

    def listen(
        self, batches: BatchListener | None = None, ephemerals: EphemeralListener | None = None
    ) -> None:
        """Have these called, in order of arrival, on the event loop."""
        if batches is not None:
            self._batch_listeners.append(batches)
        if ephemerals is not None:
            self._ephemeral_listeners.append(ephemerals)
