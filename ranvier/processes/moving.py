"""Connections that move from worker to worker of one machine: to the one that has the room they write to.

A client mostly goes on writing where it wrote, so from then on nothing has to be passed on. Whoever gives a
connection away keeps a copy of it until the other one has said that it serves it, and serves it itself if the
other one dies or does not come to it: no request is lost, and none is begun twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from ranvier.processes import front_protocol
from ranvier.processes.front_end import Adopting
from ranvier.processes.front_protocol import Connection, Refused, Taken

logger = logging.getLogger(__name__)

TAKE_WITHIN_S: Final = 0.2
_MARGIN_S: Final = 0.2
_SUSPECT_S: Final = 2.0
_MAX_GIVEN: Final = 1000
_BACKLOG: Final = 64
_SUFFIX: Final = ".move"


@dataclass(frozen=True, slots=True)
class _Given:
    """A connection that another worker has not taken yet."""

    descriptor: int
    listener: int
    begun: bytes
    at: float


@dataclass(slots=True)
class _Peer:
    """Another worker, and what it was given and has not taken, oldest first."""

    sock: socket.socket
    given: dict[int, _Given] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    suspect_until: float = 0.0


class Moving:
    """Give connections to other workers, and take theirs.

    ``folder`` is what the workers of one machine share; each has a socket there, by its name. ``moved``
    counts what was given away.
    """

    def __init__(self, *, folder: Path, own_name: str, adopting: Adopting) -> None:
        self._folder = folder
        self._path = folder / f"{own_name}{_SUFFIX}"
        self._adopting = adopting
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._givers: set[socket.socket] = set()
        self._peers: dict[str, _Peer] = {}
        self._ids = itertools.count(1)
        self._draining = False
        self.moved = 0

    def start(self) -> None:
        """Take connections, and let those of all listeners move. Raises ``OSError``."""
        self._path.unlink(missing_ok=True)  # a name has one life at a time: this is of the one before
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.bind(str(self._path))
            self._path.chmod(0o600)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        self._listening = sock
        self._loop.add_reader(sock.fileno(), self._accept, sock)
        for index, listener in enumerate(self._adopting.listeners):
            listener.let_move(partial(self.give, index))

    def drain(self) -> None:
        """Take no more. What is here may still be given away."""
        if self._draining:
            return
        self._draining = True
        if self._listening is not None:
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what was given and not taken to those who were given it."""
        self.drain()
        for giver in list(self._givers):
            self._forget(giver)
        for name, peer in list(self._peers.items()):
            for given in peer.given.values():
                os.close(given.descriptor)
            peer.given.clear()
            self._lose(name, peer)

    # -- giving ----------------------------------------------------------------------------------------

    def give(self, listener: int, name: str, descriptor: int, begun: bytes) -> bool:
        """Give a connection to the worker of a name; False if that one cannot be asked now.

        ``listener`` is its listener's index, ``begun`` what was read of its next request. The descriptor
        remains the caller's, who is to close it and do no more with it.
        """
        peer = self._peers.get(name) or self._connect(name)
        now = time.monotonic()
        if peer is None or peer.suspect_until > now or len(peer.given) >= _MAX_GIVEN:
            return False
        id = next(self._ids)
        try:
            copy = os.dup(descriptor)
        except OSError as error:
            logger.warning("A connection could not be given to %s: %s", name, error)
            return False
        if not front_protocol.send(peer.sock, Connection(id, listener, now + TAKE_WITHIN_S, begun), copy):
            os.close(copy)
            return False
        peer.given[id] = _Given(copy, listener, begun, now)
        if peer.timer is None:
            peer.timer = self._loop.call_later(TAKE_WITHIN_S + _MARGIN_S, self._look, name, peer)
        self.moved += 1
        return True

    def _connect(self, name: str) -> _Peer | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(str(self._folder / f"{name}{_SUFFIX}"))
        except OSError:  # it is on another machine, has no front, or is just gone
            sock.close()
            return None
        peer = self._peers[name] = _Peer(sock)
        self._loop.add_reader(sock.fileno(), self._hear_taken, name, peer)
        return peer

    def _hear_taken(self, name: str, peer: _Peer) -> None:
        while True:
            try:
                message, _ = front_protocol.receive(peer.sock)
            except BlockingIOError:
                return
            if message is None:
                self._lose(name, peer)
                return
            if isinstance(message, Taken | Refused):
                given = peer.given.pop(message.id, None)
                if given is not None and isinstance(message, Taken):
                    os.close(given.descriptor)
                elif given is not None:
                    self._take_back(given)

    def _look(self, name: str, peer: _Peer) -> None:
        """Take back what a worker does not come to."""
        peer.timer = None
        # If it was this process that stood still, what the other one said is here and not read yet.
        self._hear_taken(name, peer)
        now = time.monotonic()
        overdue = now - TAKE_WITHIN_S - _MARGIN_S
        late = [id for id, given in peer.given.items() if given.at <= overdue]
        if late:
            peer.suspect_until = now + _SUSPECT_S
            logger.warning("Worker %s does not take %d connections; they stay here", name, len(late))
        for id in late:
            self._take_back(peer.given.pop(id))
        if peer.given:
            oldest = next(iter(peer.given.values()))
            peer.timer = self._loop.call_later(oldest.at - overdue, self._look, name, peer)

    def _lose(self, name: str, peer: _Peer) -> None:
        """Serve what a worker that is gone did not take."""
        if self._peers.get(name) is peer:
            del self._peers[name]
            self._loop.remove_reader(peer.sock.fileno())
            peer.sock.close()
        if peer.timer is not None:
            peer.timer.cancel()
            peer.timer = None
        given, peer.given = list(peer.given.values()), {}
        for it in given:
            self._take_back(it)

    def _take_back(self, given: _Given) -> None:
        self.moved -= 1
        self._adopting.adopt(given.listener, socket.socket(fileno=given.descriptor), given.begun)

    # -- taking ----------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            giver, _ = listening.accept()
        except OSError as error:
            logger.debug("Another worker could not be heard: %s", error)
            return
        giver.setblocking(False)
        self._givers.add(giver)
        self._loop.add_reader(giver.fileno(), self._hear_given, giver)

    def _hear_given(self, giver: socket.socket) -> None:
        while True:
            try:
                message, sock = front_protocol.receive(giver)
            except BlockingIOError:
                return
            if message is None:
                self._forget(giver)
                return
            if isinstance(message, Connection) and sock is not None:
                self._take(giver, message, sock)

    def _take(self, giver: socket.socket, message: Connection, sock: socket.socket) -> None:
        """Serve a connection if its giver surely knows in time that it has not to."""
        refused = self._draining or time.monotonic() > message.deadline
        told = front_protocol.send(giver, Refused(message.id) if refused else Taken(message.id))
        # The giver may be told too late even so if this process stood still between two lines.
        if refused or not told or time.monotonic() > message.deadline + _MARGIN_S / 2:
            sock.close()
            return
        self._adopting.adopt(message.listener, sock, message.begun)

    def _forget(self, giver: socket.socket) -> None:
        self._givers.discard(giver)
        self._loop.remove_reader(giver.fileno())
        giver.close()
