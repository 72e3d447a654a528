"""Connections that move from worker to worker of one machine: to the one that has the room they write to.

A client mostly goes on writing where it wrote, so from then on nothing has to be passed on. Whoever gives a
connection away keeps a copy of it until the other one has taken it, and serves it itself if that one dies or
does not come to it: no request is lost with a worker that never read it, and none is begun twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ranvier.http.listeners import UnixAddress, remove_socket_file, unix_socket
from ranvier.processes import front_protocol
from ranvier.processes.front_end import Adopting
from ranvier.processes.front_protocol import Connection, Passed, Refused, Taken
from ranvier.processes.offers import Offers, refuse, take

logger = logging.getLogger(__name__)

_TAKE_WITHIN_S: Final = 0.4
_SUSPECT_S: Final = 2.0
_MAX_GIVEN: Final = 1000
_FULL_PAUSE_S: Final = 2.0
_BACKLOG: Final = 64
_SUFFIX: Final = ".move"


@dataclass(frozen=True, slots=True)
class _Given:
    """A connection that another worker has not taken yet."""

    descriptor: int
    listener: str
    begun: bytes

    def let_go(self) -> None:
        """Close it here: the other worker serves it."""
        os.close(self.descriptor)


@dataclass(slots=True)
class _Peer:
    """Another worker, and what it was given and has not taken."""

    name: str
    sock: socket.socket
    given: Offers[_Given]
    timer: asyncio.TimerHandle | None = None
    suspect_until: float = 0.0


class Moving:
    """Give connections to other workers, and take theirs.

    ``folder`` is what the workers of one machine share; each has a socket there, by its name. A worker that
    drains may still give away what it has.
    """

    def __init__(self, *, folder: Path, own_name: str, adopting: Adopting) -> None:
        self._folder = folder
        self._path = folder / f"{own_name}{_SUFFIX}"
        self._inode = 0
        self._adopting = adopting
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._givers: set[socket.socket] = set()
        self._peers: dict[str, _Peer] = {}
        self._draining = False
        self._ending = False

    def start(self) -> None:
        """Take connections, and let those of all listeners move. Raises ``OSError``."""
        self._listening = sock = unix_socket(UnixAddress(self._path, 0o600), socket.SOCK_SEQPACKET)
        self._inode = self._path.stat().st_ino
        sock.listen(_BACKLOG)
        self._loop.add_reader(sock.fileno(), self._accept, sock)
        for definition, listener in self._adopting.listeners.items():
            listener.let_move(partial(self.give, definition))

    def drain(self) -> None:
        """Take no more."""
        self._draining = True
        self._stop_listening()

    async def settle(self) -> None:
        """Give away no more either, and have back what nobody took: the listeners have all there is then."""
        self.drain()
        self._ending = True
        for peer in self._peers.values():
            for given in peer.given.withdraw():
                self._take_back(given)
        await self._adopting.settle()

    def close(self) -> None:
        """Close all sockets."""
        self._stop_listening()
        for giver in list(self._givers):
            self._forget(giver)
        for peer in list(self._peers.values()):
            self._lose(peer)

    # -- giving ----------------------------------------------------------------------------------------

    def give(self, listener: str, name: str, descriptor: int, begun: bytes) -> bool:
        """Give a connection to the worker of a name; False if that one cannot be asked now.

        ``listener`` is its listener's definition, ``begun`` what was read of its next request. The descriptor
        remains the caller's, who is to close it and do no more with it.
        """
        peer = None if self._ending else self._peers.get(name) or self._connect(name)
        if peer is None or peer.suspect_until > time.monotonic() or len(peer.given) >= _MAX_GIVEN:
            return False
        try:
            given = _Given(os.dup(descriptor), listener, begun)
        except OSError as error:
            logger.warning("A connection could not be given to %s: %s", name, error)
            return False
        if not peer.given.make(given, given.descriptor, listener, begun):
            given.let_go()
            return False
        if peer.timer is None:
            peer.timer = self._loop.call_later(_TAKE_WITHIN_S, self._look, peer)
        return True

    def _connect(self, name: str) -> _Peer | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(str(self._folder / f"{name}{_SUFFIX}"))
        except OSError:  # it is on another machine, has no front, or is just gone
            sock.close()
            return None
        peer = self._peers[name] = _Peer(name, sock, Offers(sock))
        self._loop.add_reader(sock.fileno(), self._hear_answers, peer)
        return peer

    def _hear_answers(self, peer: _Peer) -> None:
        for message, _ in front_protocol.all_received(peer.sock):
            if message is None:
                self._lose(peer)
            elif (refused := peer.given.hear(message)) is not None:
                # It drains, is full, or has no such listener.
                peer.suspect_until = time.monotonic() + _SUSPECT_S
                self._take_back(refused)

    def _look(self, peer: _Peer) -> None:
        """Take back what a worker does not come to."""
        peer.timer = None
        late = peer.given.withdraw(older_than_s=_TAKE_WITHIN_S)
        if late:
            peer.suspect_until = time.monotonic() + _SUSPECT_S
            logger.warning("Worker %s does not take %d connections; they stay here", peer.name, len(late))
        for given in late:
            self._take_back(given)
        if (oldest := peer.given.oldest) is not None:
            due_s = max(0.0, oldest + _TAKE_WITHIN_S - time.monotonic())
            peer.timer = self._loop.call_later(due_s, self._look, peer)

    def _lose(self, peer: _Peer) -> None:
        """Serve what a worker that is gone did not take."""
        del self._peers[peer.name]
        self._loop.remove_reader(peer.sock.fileno())
        peer.sock.close()
        if peer.timer is not None:
            peer.timer.cancel()
        for given in peer.given.withdraw():
            self._take_back(given)

    def _take_back(self, given: _Given) -> None:
        self._adopting.adopt(given.listener, socket.socket(fileno=given.descriptor), given.begun)

    # -- taking ----------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            giver, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("Other workers cannot give connections to this one now: %s", error)
            self._loop.remove_reader(listening.fileno())  # else the loop would tell of it again and again
            self._loop.call_later(_FULL_PAUSE_S, self._go_on, listening)
            return
        giver.setblocking(False)
        self._givers.add(giver)
        self._loop.add_reader(giver.fileno(), self._hear_offers, giver)

    def _go_on(self, listening: socket.socket) -> None:
        if listening is self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _hear_offers(self, giver: socket.socket) -> None:
        for message, passed in front_protocol.all_received(giver):
            if message is None:
                self._forget(giver)
            elif isinstance(message, Connection) and passed is not None:
                self._take(giver, message, passed)

    def _take(self, giver: socket.socket, message: Connection, passed: Passed) -> None:
        # Whether the giver hears the answer decides nothing: without it, it looks for itself after a while.
        if self._draining or not self._adopting.accepts(message.listener):
            refuse(passed)
            front_protocol.send(giver, Refused(message.id))
        elif (sock := take(passed)) is not None:
            front_protocol.send(giver, Taken(message.id))
            self._adopting.adopt(message.listener, sock, message.begun)

    def _forget(self, giver: socket.socket) -> None:
        self._givers.discard(giver)
        self._loop.remove_reader(giver.fileno())
        giver.close()

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening.fileno())
            # While it is open: a successor's file may be given its number afterwards.
            remove_socket_file(self._path, self._inode)
            self._listening.close()
            self._listening = None
