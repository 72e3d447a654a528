"""A small HTTP/1.1 client: one kept-alive connection, one request at a time, as little CPU as possible.

The driver shares the machine with the server that it measures: its own cost must stay far below the server's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

import httptools


class ConnectionLostError(ConnectionError):
    """The server closed the connection before the answer was complete."""


@dataclass(slots=True)
class Answer:
    """One HTTP answer; `received` is the `perf_counter` time (s) at which its last byte was there."""

    status: int
    body: bytes
    received: float


class _Protocol(asyncio.Protocol):
    """Collects one answer at a time from the bytes of one connection."""

    def __init__(self) -> None:
        self.closed = False
        self._answer: asyncio.Future[Answer] | None = None
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio.Transport says without being of that class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLostError(str(exc or "closed by the server")))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), b"".join(self._body), perf_counter())
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def exchange(self, request: bytes) -> asyncio.Future[Answer]:
        self._body = []
        self._answer = asyncio.get_running_loop().create_future()
        # The parser ends at a message with "Connection: close", so each exchange gets a new one.
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.close()


@dataclass
class Connection:
    """A connection to `host:port`, opened when it is first used and again when the server has closed it."""

    host: str
    port: int
    timeout_s: float = 120.0
    _protocol: _Protocol | None = field(default=None, repr=False)

    async def request(
        self, method: str, target: str, *, token: str | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request and return its answer.

        A kept-alive connection may be closed by the server just as it is used again; then, and only then, the
        request is sent once more. Raises ConnectionLostError and TimeoutError.
        """
        message = self._head(method, target, token, body)
        async with asyncio.timeout(self.timeout_s):
            reused = self._protocol is not None and not self._protocol.closed
            protocol = await self._open()
            try:
                return await protocol.exchange(message)
            except ConnectionLostError:
                if not reused:
                    raise
            return await (await self._open()).exchange(message)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._protocol is not None and not self._protocol.closed:
            self._protocol.close()
        self._protocol = None

    async def _open(self) -> _Protocol:
        if self._protocol is None or self._protocol.closed:
            loop = asyncio.get_running_loop()
            _, self._protocol = await loop.create_connection(_Protocol, self.host, self.port)
        return self._protocol

    def _head(self, method: str, target: str, token: str | None, body: bytes | None) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
