"""What the front and a worker, or two workers, say to each other over a socket, connections included."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ranvier.config.database import RedisConfig
from ranvier.config.listeners import Listener

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 64 * 1024


def redis_fields(config: RedisConfig) -> dict[str, Any]:
    """Give where Redis is, as plain values."""
    values = dataclasses.asdict(config)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def redis_config(fields: dict[str, Any]) -> RedisConfig:
    """Read what ``redis_fields`` gave."""
    return msgspec.convert(fields, RedisConfig, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


class Plan(msgspec.Struct, tag="plan", frozen=True):
    """Tell a worker, once, what its parent runs for it. ``database_size``: connections to PostgreSQL.

    ``listeners`` are those that the front has open, whatever is in the configuration by now.
    """

    name: str
    dsn: str
    redis: dict[str, Any]
    database_size: int
    listeners: tuple[Listener, ...]

    def redis_config(self) -> RedisConfig:
        """Give where Redis is."""
        return redis_config(self.redis)


class Connection(msgspec.Struct, tag="connection", frozen=True):
    """Offer a connection, which comes along as a file descriptor, with the token that says whose it is.

    ``listener`` is its listener's definition, ``begun`` what was read of its first request. See ``offers``.
    """

    id: int
    listener: str
    begun: bytes = b""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Tell the front that this worker takes connections."""


class Draining(msgspec.Struct, tag="draining", frozen=True):
    """Tell the front that this worker takes no more connections."""


class TakesRooms(msgspec.Struct, tag="rooms", frozen=True):
    """Tell the front whether rooms are placed on this worker; before it is told they are."""

    takes: bool


class Taken(msgspec.Struct, tag="taken", frozen=True):
    """Tell whoever offered a connection that it is served, so that nothing of it need be kept."""

    id: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Tell whoever offered a connection that it is not served, so that it may go to somebody else."""

    id: int


Message = Plan | Connection | Ready | Draining | TakesRooms | Taken | Refused

encode: Final = msgspec.msgpack.Encoder(enc_hook=str).encode
_decoder: Final = msgspec.msgpack.Decoder(Message, dec_hook=_path)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends: the front's, which never blocks, and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


@dataclass(frozen=True, slots=True)
class Passed:
    """What comes along with a ``Connection``: its socket, and the descriptor of its token."""

    sock: socket.socket
    token: int


def send(sock: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> bool:
    """Send a message; False if the other end is gone or takes nothing now."""
    try:
        if descriptors:
            socket.send_fds(sock, [encode(message)], descriptors)
        else:
            sock.send(encode(message))
    except OSError:
        return False
    return True


def receive(sock: socket.socket) -> tuple[Message | None, Passed | None]:
    """Receive a message and what came with it; (None, None) once the other end is gone.

    Raises BlockingIOError when nothing is there, MsgspecError for a message that only another version knows.
    """
    try:
        data, descriptors = _receive(sock)
    except ConnectionError:
        return None, None
    message = None
    try:
        message = _decoder.decode(data) if data else None
    finally:
        if message is None or len(descriptors) != 2:  # none, or this process may open no more
            for descriptor in descriptors:
                os.close(descriptor)
    if len(descriptors) != 2 or message is None:
        return message, None
    return message, Passed(socket.socket(fileno=descriptors[0]), descriptors[1])


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    try:
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 2)
    except ConnectionResetError:
        # The other end was closed before it had read all of ours. What it sent is there nevertheless, with
        # connections of which it was the only other holder.
        data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 2)
    return data, descriptors


def all_received(sock: socket.socket) -> Iterator[tuple[Message | None, Passed | None]]:
    """Receive what is there; (None, None) comes last if the other end is gone."""
    while True:
        try:
            message, passed = receive(sock)
        except BlockingIOError:
            return
        except msgspec.MsgspecError as error:
            logger.debug("A message of another version is left out: %s", error)
            continue
        yield message, passed
        if message is None:
            return
