"""The worker's end of the front: connections come in here as file descriptors."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final

from ranvier.http.listeners import Listener
from ranvier.processes import front_protocol
from ranvier.processes.front_protocol import (
    Connection,
    Draining,
    Message,
    Passed,
    Ready,
    Refused,
    Taken,
    TakesRooms,
)
from ranvier.processes.offers import refuse, take

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.01
_SETTLE_S: Final = 0.5


class Adopting:
    """Serve connections that were accepted elsewhere, each as its listener does.

    ``listeners`` are known by their definitions, and not by a number: whoever accepted the connection may
    have read another configuration than this process, and a public port must not become a private one.
    """

    def __init__(self, listeners: Mapping[str, Listener], tasks: asyncio.TaskGroup) -> None:
        self.listeners = listeners
        self._tasks = tasks
        self._beginning: set[asyncio.Task[None]] = set()

    def accepts(self, listener: str) -> bool:
        """Tell whether there is a listener of this definition here, and room for a connection."""
        found = self.listeners.get(listener)
        return found is not None and not found.is_full

    def adopt(self, listener: str, sock: socket.socket, begun: bytes = b"") -> None:
        """Serve a connection, of which ``begun`` was read already."""
        sock.setblocking(False)
        task = self._tasks.create_task(self._serve(self.listeners[listener], sock, begun))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def settle(self) -> None:
        """Wait until the listeners have what was adopted so far, but for clients that are slow with TLS."""
        if self._beginning:
            await asyncio.wait(self._beginning, timeout=_SETTLE_S)

    async def _serve(self, listener: Listener, sock: socket.socket, begun: bytes) -> None:
        try:
            await listener.adopt(sock, begun)
        except (OSError, ssl.SSLError) as error:
            logger.debug("A connection was lost before it was served: %s", error)
            sock.close()


class FrontEnd:
    """Serve the connections that the front brings. ``on_orphaned`` is called when the front is gone."""

    def __init__(self, sock: socket.socket, adopting: Adopting, on_orphaned: Callable[[], None]) -> None:
        self._sock = sock
        self._adopting = adopting
        self._on_orphaned = on_orphaned
        self._loop = asyncio.get_running_loop()
        self._takes_rooms = True
        self._draining = self._ending = False
        self._gone = False

    @property
    def is_orphaned(self) -> bool:
        """Whether the front is gone, which only ends after its workers."""
        return self._gone

    def start(self) -> None:
        """Ask for connections."""
        self._loop.add_reader(self._sock.fileno(), self._hear)
        self._say(Ready())

    def take_rooms(self, takes: bool) -> None:
        """Say whether connections come here for the sake of a room."""
        if takes != self._takes_rooms:
            self._takes_rooms = takes
            self._say_rooms()

    def drain(self) -> None:
        """Take no more connections; this worker may run on."""
        self._draining = True
        self._say(Draining())

    def end(self) -> None:
        """Take no more connections, as this worker ends."""
        self._ending = True
        self.drain()

    def _hear(self) -> None:
        for message, passed in front_protocol.all_received(self._sock):
            if message is None:
                self._gone = True
                self._loop.remove_reader(self._sock.fileno())
                if not self._ending:
                    logger.error("The process that started this worker is gone")
                    self._on_orphaned()
            elif isinstance(message, Connection) and passed is not None:
                self._take(message, passed)

    def _take(self, message: Connection, passed: Passed) -> None:
        if self._draining or not self._adopting.accepts(message.listener):
            refuse(passed)
            self._say(Refused(message.id))
        elif (sock := take(passed)) is not None:
            self._say(Taken(message.id))
            self._adopting.adopt(message.listener, sock)

    def _say_rooms(self) -> None:
        # Said later, it is what holds then.
        if not self._gone and not front_protocol.send(self._sock, TakesRooms(self._takes_rooms)):
            self._loop.call_later(_AGAIN_S, self._say_rooms)

    def _say(self, message: Message) -> None:
        if not self._gone and not front_protocol.send(self._sock, message):
            # The front has much to hear, or is gone, which is seen in reading.
            self._loop.call_later(_AGAIN_S, self._say, message)
