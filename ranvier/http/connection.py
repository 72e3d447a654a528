"""One client's connection: uvicorn's HTTP/1.1 protocol, with bounds on what a stranger can make it hold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from ranvier.http.exchange import ResponseCycle
from ranvier.http.rendering import json_headers
from ranvier.http.response import encode
from ranvier.spec.errors import MatrixError


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bound a connection: the head of a request in bytes and seconds, idle time, and connections in all."""

    max_head_bytes: int = 64 * 1024
    head_timeout_s: float = 30.0
    keep_alive_s: int = 75
    max_connections: int = 20_000


class Connection(HttpToolsProtocol):
    """Speak HTTP/1.1 with one client. Made by the listener for each connection that it accepts."""

    def __init__(self, config: Config, state: ServerState, limits: ConnectionLimits) -> None:
        super().__init__(config, state, app_state={})
        self._limits = limits
        self._reading_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > self._limits.max_connections:
            self._refuse(MatrixError("M_UNKNOWN", 503, "The server has too many connections"))
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_head_timer()
        super().connection_lost(exc)
        # uvicorn leaves this timer running when the connection breaks with an error.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as the bounds allow."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        # The parser gathers a header of any length before it tells of it, so the bytes are counted here.
        if self._reading_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse_head()
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here: the request is answered as if it had not asked
        except httptools.HttpParserError:
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse_head()
            else:
                self._refuse(MatrixError("M_UNKNOWN", 400, "This is not a valid HTTP request"))
            return
        if self._reading_head and self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._reading_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.max_head_bytes + len(self.url):
            raise ValueError("the head is too large")  # the parser stops and data_received refuses
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer the request."""
        self._reading_head = False
        self._stop_head_timer()
        url = httptools.parse_url(self.url)
        if url.path is None:
            raise ValueError("the target has no path")  # the parser stops and data_received refuses
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""
        previous = self.cycle
        self.cycle = self._make_cycle()
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: answered when those before it are
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _make_cycle(self) -> ResponseCycle:
        keeps_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        return ResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keeps_alive,
            on_response=self.on_response_complete,
        )

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client takes nothing of its answer any more is cut."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif unsent:
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._reading_head:
            self._refuse(MatrixError("M_UNKNOWN", 408, "The head of the request did not arrive in time"))
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        limit = self._limits.max_head_bytes
        self._refuse(MatrixError("M_TOO_LARGE", 431, f"The head of the request is larger than {limit} bytes"))

    def _refuse(self, error: MatrixError) -> None:
        """Answer and close without asking the application: there is no request to give it."""
        self._stop_head_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer to an earlier request is under way; this one would mix with it
            return
        body = encode(error.body())
        head = [name + b": " + value + b"\r\n" for name, value in json_headers(len(body))]
        self.transport.write(
            b"".join([STATUS_LINE[error.status], *head, b"connection: close\r\n\r\n", body]),
        )
        self.transport.close()
