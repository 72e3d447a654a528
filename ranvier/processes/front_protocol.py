"""What the front and a worker say to each other over the socket pair between them, connections included."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from ranvier.config.database import RedisConfig

MAX_MESSAGE: Final = 64 * 1024


def redis_fields(config: RedisConfig) -> dict[str, Any]:
    """Give where Redis is, as plain values."""
    values = dataclasses.asdict(config)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def redis_config(fields: dict[str, Any]) -> RedisConfig:
    """Read what ``redis_fields`` gave."""

    def make(kind: type, value: Any) -> Any:
        return Path(value) if kind is Path else value

    return msgspec.convert(fields, RedisConfig, dec_hook=make)


class Plan(msgspec.Struct, tag="plan", frozen=True):
    """Tell a worker, once, what its parent runs for it. ``database_size``: connections to PostgreSQL."""

    name: str
    dsn: str
    redis: dict[str, Any]
    database_size: int

    def redis_config(self) -> RedisConfig:
        """Give where Redis is."""
        return redis_config(self.redis)


class Connection(msgspec.Struct, tag="connection", frozen=True):
    """Hand over a connection, which comes along as a file descriptor.

    ``listener`` is its listener's index. Past ``deadline`` (of the machine's monotonic clock) the worker lets
    it be: the front gives it to another one then. ``begun`` is what was read of its first request already.
    """

    id: int
    listener: int
    deadline: float
    begun: bytes = b""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Tell the front that this worker takes connections."""


class Draining(msgspec.Struct, tag="draining", frozen=True):
    """Tell the front that this worker takes no more connections."""


class Taken(msgspec.Struct, tag="taken", frozen=True):
    """Tell the front that a connection is served."""

    id: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """Tell the front that a connection is not served, and may go to somebody else."""

    id: int


Message = Plan | Connection | Ready | Draining | Taken | Refused

encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Message)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends: the front's, which never blocks, and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send(sock: socket.socket, message: Message, passed: int | None = None) -> bool:
    """Send a message, perhaps with a file descriptor; False if the other end is gone or takes nothing now."""
    try:
        if passed is None:
            sock.send(encode(message))
        else:
            socket.send_fds(sock, [encode(message)], [passed])
    except OSError:
        return False
    return True


def receive(sock: socket.socket) -> tuple[Message | None, socket.socket | None]:
    """Receive a message and the connection that came with it; (None, None) once the other end is gone.

    Raises BlockingIOError when nothing is there.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 1)
    except ConnectionError:
        return None, None
    passed = socket.socket(fileno=fds[0]) if fds else None
    if not data:
        return None, None
    return _decoder.decode(data), passed
