"""The front of ``ranvier up --workers``: it accepts connections and hands each to a worker for good.

It looks at the first bytes of a connection without taking them, chooses the worker that has the room or the
user, and passes the socket on: from then on it has nothing to do with it. Until the worker has said that it
serves the connection the front keeps it, too: a worker that dies or does not come to it loses no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ranvier.cluster.placement import ROOM, ranked
from ranvier.http.listeners import TcpAddress, UnixAddress, tcp_socket, unix_socket
from ranvier.processes import front_protocol
from ranvier.processes.front_protocol import Draining, Ready, TakesRooms
from ranvier.processes.offers import Offers
from ranvier.processes.open_files import most_open_files
from ranvier.processes.request_head import PEEKED_BYTES, is_enough, key_of

logger = logging.getLogger(__name__)

_TAKE_WITHIN_S: Final = 1.25
_FIRST_BYTES_S: Final = 30.0
_MORE_BYTES_S: Final = 0.02
_LOOK_S: Final = 0.25
_SUSPECT_S: Final = 2.0
_MAX_WAITING: Final = 20_000
_FILES_EACH: Final = 2  # the connection, and its token while it is offered
_ACCEPT_AT_ONCE: Final = 64
_FULL_PAUSE_S: Final = 0.5
_FULL_WARNING_S: Final = 30.0
_FULL: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


@dataclass(frozen=True, slots=True)
class FrontListener:
    """One listener of the configuration: what ``definition`` says, at some addresses.

    TLS is spoken by the workers, so there is nothing to look at.
    """

    definition: str
    addresses: Sequence[TcpAddress | UnixAddress]
    tls: bool
    backlog: int = 2048


@dataclass(slots=True, eq=False)
class _Waiting:
    """A connection that no worker serves yet."""

    sock: socket.socket
    listener: FrontListener
    timer: asyncio.TimerHandle | None = None
    key: tuple[str, str] | None = None
    refused_by: set[str] = field(default_factory=set)

    def let_go(self) -> None:
        """Close it here: a worker serves it."""
        self.sock.close()


@dataclass(slots=True, eq=False)
class _Worker:
    sock: socket.socket
    given: Offers[_Waiting]
    ready: bool = False
    has_served: bool = False
    takes_rooms: bool = True
    suspect_until: float = 0.0


class Front:
    """Spread connections over the workers of one machine.

    No more than ``max_waiting`` connections wait for a worker or for their first bytes; by default, what this
    process may open files for.
    """

    def __init__(self, listeners: Sequence[FrontListener], max_waiting: int | None = None) -> None:
        self._max_waiting = max_waiting or min(_MAX_WAITING, most_open_files() // _FILES_EACH)
        self._listeners = listeners
        self._sockets: list[tuple[socket.socket, FrontListener]] = []
        self._files: list[UnixAddress] = []
        self._workers: dict[str, _Worker] = {}
        self._started: set[str] = set()  # who has been ready, be it in a process of before
        self._unread: dict[_Waiting, None] = {}  # oldest first
        self._unplaced: list[_Waiting] = []
        self._turns = itertools.count()
        self._full_at = -_FULL_WARNING_S
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.addresses: list[TcpAddress | UnixAddress] = []

    # -- workers ---------------------------------------------------------------------------------------

    def add_worker(self, name: str, sock: socket.socket) -> None:
        """Know a worker by the socket to it; it gets connections once it has said that it is ready."""
        self._workers[name] = _Worker(sock, Offers(sock))
        self._loop.add_reader(sock.fileno(), self._hear, name)

    def remove_worker(self, name: str) -> None:
        """Forget a worker that is gone; what it was given and did not take goes to others."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        self._loop.remove_reader(worker.sock.fileno())
        worker.sock.close()
        self._changed.set()
        for waiting in worker.given.withdraw():
            self._give(waiting)

    def ready_workers(self) -> list[str]:
        """Give the workers that take connections."""
        return [name for name, worker in self._workers.items() if worker.ready]

    def is_starting(self, name: str) -> bool:
        """Tell whether a worker has not been ready yet."""
        worker = self._workers.get(name)
        return worker is not None and not worker.has_served

    def has_started(self, name: str) -> bool:
        """Tell whether a worker of this name has been ready, in its process of now or one before."""
        return name in self._started

    async def wait_ready(self, names: Iterable[str]) -> None:
        """Wait until these workers take connections."""
        wanted = set(names)
        while not wanted <= set(self.ready_workers()):
            await self._change()

    async def wait_started(self, names: Iterable[str]) -> None:
        """Wait until each of these workers has been ready, whether it is now or not."""
        wanted = set(names)
        while not wanted <= self._started:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _hear(self, name: str) -> None:
        worker = self._workers[name]
        for message, _ in front_protocol.all_received(worker.sock):
            if message is None:
                self.remove_worker(name)
            elif isinstance(message, Ready | Draining):
                worker.ready = isinstance(message, Ready)
                worker.has_served |= worker.ready
                self._started.add(name)  # one that was drained before it served has come as far
                self._changed.set()
                self._give_unplaced()
            elif isinstance(message, TakesRooms):
                worker.takes_rooms = message.takes
            elif (refused := worker.given.hear(message)) is not None:
                refused.refused_by.add(name)
                self._give(refused)

    # -- connections -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Bind every address; ``addresses`` then says where. Raises ``OSError``, and none stays open."""
        try:
            for listener in self._listeners:
                for address in listener.addresses:
                    self._bind(address, listener)
        except BaseException:
            self.close()
            raise

    def serve(self) -> None:
        """Accept connections."""
        for sock, listener in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock, listener)

    async def run(self) -> None:
        """Take back what a worker does not come to, and give what none could be given, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.ready_workers():
                self._give_unplaced()
            for name, worker in list(self._workers.items()):
                late = worker.given.withdraw(older_than_s=_TAKE_WITHIN_S)
                if late:
                    worker.suspect_until = time.monotonic() + _SUSPECT_S
                    logger.warning("Worker %s does not take %d connections; others get them", name, len(late))
                for waiting in late:
                    waiting.refused_by.add(name)
                    self._give(waiting)

    def close(self) -> None:
        """Accept no more; what no worker serves is closed."""
        for sock, _ in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        for address in self._files:
            address.path.unlink(missing_ok=True)
        self._files.clear()
        for waiting in [*self._unread, *self._unplaced]:
            self._drop(waiting)
        self._unplaced.clear()

    def _bind(self, address: TcpAddress | UnixAddress, listener: FrontListener) -> None:
        if isinstance(address, UnixAddress):
            sock = unix_socket(address)
            self._files.append(address)
            self._listen(sock, listener)
            self.addresses.append(address)
            logger.info("Listening on %s", address.path)
            return
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            sock = tcp_socket(family, where)
            self._listen(sock, listener)
            host, port = sock.getsockname()[:2]
            self.addresses.append(TcpAddress(host, port))
            logger.info("Listening on %s port %d", host, port)

    def _listen(self, sock: socket.socket, listener: FrontListener) -> None:
        sock.listen(listener.backlog)
        self._sockets.append((sock, listener))

    def _accept(self, listening: socket.socket, listener: FrontListener) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._pause(listening, listener, error)
                else:  # of that connection alone
                    logger.debug("A connection could not be accepted: %s", error)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(_Waiting(sock, listener))

    def _pause(self, listening: socket.socket, listener: FrontListener, error: OSError) -> None:
        """Accept no more for a while: what waits there would wake the event loop again and again."""
        now = time.monotonic()
        if now - self._full_at >= _FULL_WARNING_S:
            logger.warning("Connections cannot be accepted now: %s", error)
        self._full_at = now
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(_FULL_PAUSE_S, self._go_on, listening, listener)

    def _go_on(self, listening: socket.socket, listener: FrontListener) -> None:
        if (listening, listener) in self._sockets:  # it was not closed meanwhile
            self._loop.add_reader(listening.fileno(), self._accept, listening, listener)

    def _begin(self, waiting: _Waiting) -> None:
        if len(self._unread) + len(self._unplaced) >= self._max_waiting:
            if not self._unread:
                waiting.sock.close()
                return
            self._drop(next(iter(self._unread)))  # it had the most time to say something
        if waiting.listener.tls or self._look(waiting):
            self._give(waiting)
        else:
            self._unread[waiting] = None
            waiting.timer = self._loop.call_later(_FIRST_BYTES_S, self._drop, waiting)
            self._loop.add_reader(waiting.sock.fileno(), self._on_bytes, waiting)

    def _look(self, waiting: _Waiting) -> bool:
        """Look at what is there; True if that is enough to choose a worker."""
        try:
            head = waiting.sock.recv(PEEKED_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            head = b""
        waiting.key = key_of(head)
        return not head or is_enough(head)

    def _on_bytes(self, waiting: _Waiting) -> None:
        # The bytes stay where they are, so the event loop would tell of them again and again.
        self._loop.remove_reader(waiting.sock.fileno())
        assert waiting.timer is not None
        waiting.timer.cancel()
        if self._look(waiting):
            self._give(waiting)
        else:
            waiting.timer = self._loop.call_later(_MORE_BYTES_S, self._look_last, waiting)

    def _look_last(self, waiting: _Waiting) -> None:
        self._look(waiting)
        self._give(waiting)

    def _give(self, waiting: _Waiting) -> None:
        """Hand a connection to the worker that has its key, or to the next that takes it."""
        self._unread.pop(waiting, None)
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None
        kind, key = waiting.key or ("", str(next(self._turns)))
        names = ranked(kind, key, self.ready_workers())
        if kind == ROOM:
            names.sort(key=lambda name: not self._workers[name].takes_rooms)
        now = time.monotonic()
        names = [name for name in names if name not in waiting.refused_by]
        for name in sorted(names, key=lambda it: self._workers[it].suspect_until > now):
            if self._workers[name].given.make(waiting, waiting.sock.fileno(), waiting.listener.definition):
                return
        # Until a worker is ready, or those that refused it have had the time to think again.
        waiting.refused_by.clear()
        self._unplaced.append(waiting)

    def _give_unplaced(self) -> None:
        unplaced, self._unplaced = self._unplaced, []
        for waiting in unplaced:
            self._give(waiting)

    def _drop(self, waiting: _Waiting) -> None:
        self._unread.pop(waiting, None)
        if waiting.timer is not None:
            waiting.timer.cancel()
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(waiting.sock.fileno())
        waiting.sock.close()
