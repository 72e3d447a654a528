"""Connections that one process offers to another: each is served by one of the two, whatever becomes of them.

With a connection goes a token, which can be read once. Whoever reads it first has the connection: the process
that it is offered to, or the one that offers it and has waited long enough. The kernel decides that; no clock
does, nor whether a message came in time, so either may stand still or die between any two lines.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ranvier.processes import front_protocol
from ranvier.processes.front_protocol import Connection, Message, Passed, Refused, Taken

logger = logging.getLogger(__name__)


class Offered(Protocol):
    """What whoever offers a connection keeps of it."""

    def let_go(self) -> None:
        """Close it here: the other process serves it."""


T = TypeVar("T", bound=Offered)


@dataclass(frozen=True, slots=True)
class _Offer(Generic[T]):
    kept: T
    token: int
    at: float


class Offers(Generic[T]):
    """Hold what was offered over one socket and has not been taken yet, oldest first."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._open: dict[int, _Offer[T]] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def oldest(self) -> float | None:
        """Give when the oldest was offered (monotonic seconds)."""
        return next((offer.at for offer in self._open.values()), None)

    def make(self, kept: T, descriptor: int, listener: str, begun: bytes = b"") -> bool:
        """Offer a connection; False if the other end is gone or hears nothing now. See ``Connection``."""
        try:
            token = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            logger.warning("A connection could not be offered: %s", error)
            return False
        id = next(self._ids)
        if not front_protocol.send(self._sock, Connection(id, listener, begun), (descriptor, token)):
            os.close(token)
            return False
        self._open[id] = _Offer(kept, token, time.monotonic())
        return True

    def hear(self, message: Message) -> T | None:
        """Take in an answer; give the connection if it comes back."""
        if isinstance(message, Taken | Refused) and (offer := self._open.pop(message.id, None)) is not None:
            return _settle(offer)
        return None

    def withdraw(self, older_than_s: float = 0.0) -> list[T]:
        """Give what can be had back of what was offered so many seconds ago, or longer."""
        until = time.monotonic() - older_than_s
        due = [id for id, offer in self._open.items() if offer.at <= until]
        settled = [_settle(self._open.pop(id)) for id in due]
        return [kept for kept in settled if kept is not None]


def _settle(offer: _Offer[T]) -> T | None:
    """Give the connection if it is this process's again; else let it go."""
    if _is_first(offer.token):
        return offer.kept
    offer.kept.let_go()
    return None


def take(passed: Passed) -> socket.socket | None:
    """Take a connection that was offered; None if whoever offered it has it again."""
    if _is_first(passed.token):
        return passed.sock
    passed.sock.close()
    return None


def refuse(passed: Passed) -> None:
    """Leave a connection to whoever offered it."""
    os.close(passed.token)
    passed.sock.close()


def _is_first(token: int) -> bool:
    """Read a token and close it; tell whether nobody had read it before."""
    try:
        os.eventfd_read(token)
    except BlockingIOError:
        return False
    finally:
        os.close(token)
    return True
