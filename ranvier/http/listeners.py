"""Listening on TCP addresses and UNIX sockets, with or without TLS, and stopping without breaking answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import stat
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ranvier.http.app import Edge
from ranvier.http.connection import LINGER_S, Connection
from ranvier.http.open_connections import ConnectionLimits, Move, Open, Successor

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 1.0
_BREAK_OFF_S = 1.0
_LEAVE_EVERY_S = 0.002
# The event loop looks at its sockets once in each, however busy it is.
_LAST_TURNS = 5
_LAST_TURN_S = 0.004
# A connection is counted when it is made, which it is after the handshake.
_HANDSHAKE_S = 10.0


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Name a host (an address, or a name that resolves to some) and a port; port 0 takes a free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Name a socket file and its mode."""

    path: Path
    mode: int = 0o660


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Name the certificate chain and its private key, both PEM."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Say where a listener listens and how."""

    addresses: tuple[TcpAddress | UnixAddress, ...]
    tls: TlsFiles | None = None
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    backlog: int = 2048


class Listener:
    """Serve an application on some addresses. Owns its sockets from ``start`` to ``stop``."""

    def __init__(self, settings: ListenerSettings, app: Edge) -> None:
        self._settings = settings
        self._app = app
        self._state = Open()
        self._tls = tls_context(settings.tls) if settings.tls is not None else None
        self._wrapping: dict[str, Any] = {}
        if self._tls is not None:
            self._wrapping = {"ssl": self._tls, "ssl_handshake_timeout": _HANDSHAKE_S}
        self._servers: list[asyncio.Server] = []
        self._socket_files: list[tuple[Path, int]] = []
        self.addresses: list[TcpAddress | UnixAddress] = []

    async def start(self) -> None:
        """Open every address and serve; ``addresses`` then says where. On ``OSError`` none stays open."""
        try:
            for address in self._settings.addresses:
                if isinstance(address, UnixAddress):
                    await self._start_unix(address)
                else:
                    await self._start_tcp(address)
        except BaseException:
            await self.stop(grace_s=0)
            raise

    async def stop(self, grace_s: float = 10.0) -> None:
        """Take no more requests, let those in flight finish for ``grace_s`` seconds, then break them off."""
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        self._remove_socket_files()
        self._state.ending = True
        for connection in list(self._state.connections):
            connection.shut_down()
        if self._servers and grace_s > 0:
            for _ in range(_LAST_TURNS):  # who is connected, and not accepted yet, is not cut off
                await asyncio.sleep(_LAST_TURN_S)
        self._close_servers()
        if self._state.connections and grace_s > 0:
            await asyncio.sleep(min(LINGER_S, grace_s))  # what was on its way is here by now
        if not await self._state.wait_answered(grace_s):
            for exchange in list(self._state.exchanges):
                exchange.abandon()
            await self._state.wait_answered(_BREAK_OFF_S)
        for connection in list(self._state.connections):
            connection.transport.close()
        await self._state.wait_gone(until - loop.time())  # somebody may still take an answer
        self._servers.clear()

    def leave(self, successor: Successor) -> None:
        """Take nobody any more, and have all who are here go on at the workers that ``successor`` names.

        Those that cannot move are closed when they have their answers. ``stop`` is still to be called.
        """
        self._state.successor = successor
        self._remove_socket_files()
        asyncio.get_running_loop().call_later(LINGER_S, self._close_servers)  # who just came is not cut off
        for number, connection in enumerate(list(self._state.connections)):
            connection.leave(LINGER_S + number * _LEAVE_EVERY_S)

    async def adopt(self, sock: socket.socket, begun: bytes = b"") -> None:
        """Serve a connection that another process accepted, and of which it has read ``begun``.

        Raises ``OSError``, ``ssl.SSLError``.
        """
        make = partial(self._connection, begun) if begun else self._connection
        await asyncio.get_running_loop().connect_accepted_socket(make, sock, **self._wrapping)

    def let_move(self, move: Move) -> None:
        """Let new connections go on to other workers."""
        self._state.move = move

    @property
    def connections(self) -> int:
        """Give the number of open connections."""
        return len(self._state.connections)

    @property
    def is_full(self) -> bool:
        """Whether another connection would be refused."""
        return self.connections >= self._settings.limits.max_connections

    def reload_certificate(self) -> None:
        """Read the certificate again, for new connections. Raises ``OSError`` (``ssl.SSLError`` is one)."""
        if self._tls is not None and self._settings.tls is not None:
            _load(self._tls, self._settings.tls)

    def _connection(self, begun: bytes = b"") -> Connection:
        return Connection(self._app.answer, self._state, self._settings.limits, begun)

    async def _start_tcp(self, address: TcpAddress) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            sock = tcp_socket(family, where)
            server = await loop.create_server(
                self._connection, sock=sock, backlog=self._settings.backlog, **self._wrapping
            )
            self._servers.append(server)
            host, port = sock.getsockname()[:2]
            self.addresses.append(TcpAddress(host, port))
            logger.info("Listening on %s port %d%s", host, port, " with TLS" if self._tls else "")

    async def _start_unix(self, address: UnixAddress) -> None:
        sock = unix_socket(address)
        self._socket_files.append((address.path, address.path.stat().st_ino))
        server = await asyncio.get_running_loop().create_unix_server(
            self._connection, sock=sock, backlog=self._settings.backlog, **self._wrapping
        )
        self._servers.append(server)
        self.addresses.append(address)
        logger.info("Listening on %s", address.path)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()

    def _remove_socket_files(self) -> None:
        for path, inode in self._socket_files:
            remove_socket_file(path, inode)
        self._socket_files.clear()


def tcp_socket(family: int, where: Any) -> socket.socket:
    # With protocol 0 instead of IPPROTO_TCP the event loop takes the connections for something else than TCP,
    # and they get no TCP_NODELAY: 40 ms on every small answer.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{where[0]} port {where[1]}: {os.strerror(error.errno or 0)}") from None
    return sock


def unix_socket(address: UnixAddress, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Bind a socket file with its mode, replacing one that nobody answers on.

    Raises ``OSError``: address in use when somebody does answer, file exists when it is no socket.
    """
    _remove_stale(address.path, kind)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)
        sock.bind(str(address.path))
        # Nobody can connect before listen(), so there is no moment with the wrong mode.
        address.path.chmod(address.mode)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"{address.path}: {error.strerror or error}") from None
    return sock


def remove_socket_file(path: Path, inode: int) -> None:
    """Remove a socket file, unless a successor has put its own there meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


def _remove_stale(path: Path, kind: int) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, f"{path} is in the way and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):
            pass  # a full backlog: somebody holds it
    raise OSError(errno.EADDRINUSE, f"{path}: another process answers there")


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read a certificate for listeners. Raises ``OSError`` that names its files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.private_key)
    except OSError as error:  # it names neither, and an SSLError is one
        named = f"the certificate {files.certificate} with the key {files.private_key}"
        raise OSError(error.errno, f"cannot use {named}: {error.strerror or error}") from error
