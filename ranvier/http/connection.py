"""One client's connection: HTTP/1.1 as httptools parses it, with bounds on what a stranger makes it hold."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools

from ranvier.http.exchange import Exchange
from ranvier.http.heads import Head
from ranvier.http.open_connections import ConnectionLimits, Open, Successor
from ranvier.http.rendering import Headers, render_head
from ranvier.http.response import Response, encode
from ranvier.spec.errors import MatrixError

# Requests that may wait for the answers of those before them. One read may hold many times as many.
_MAX_PIPELINED = 256
# A request of which more has been read is answered by the process that read it.
_MAX_MOVED_BYTES = 32 * 1024

Serve = Callable[[Exchange], None]
"""Begins to answer a request: at once, or later and from a task; never raises, and calls ``Exchange.end``."""

_AGAIN_S: Final = 2.5

LINGER_S: Final = 0.25
"""How long a connection that has nothing to do stays open when the server stops."""


class Connection(asyncio.Protocol):
    """Speak HTTP/1.1 with one client. Made by the listener for each connection that it accepts.

    ``begun`` is what another process has read of its first request. That one is answered here.
    """

    def __init__(self, serve: Serve, state: Open, limits: ConnectionLimits, begun: bytes = b"") -> None:
        self._serve = serve
        self._state = state
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        # What follows a request that asks to close is not an error; it stays unanswered.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.transport: asyncio.Transport
        self._ip = ""
        self._scheme = "http"
        # what another worker would have to know to answer the latest request: all that was read of it
        self._begun_elsewhere = begun
        self._stays = False
        self._request_bytes = b""
        # the request whose head is being read
        self._reading_head = False
        self._in_message = False
        self._begun = 0  # requests in the bytes that came last
        self._url = b""
        self._headers: Headers = []
        self._expects_continue = False
        self._head_bytes = 0
        self._bytes_in_head = 0
        self._head_timer: asyncio.TimerHandle | None = None
        # the one that was read last, the one that starts once all that came is parsed (with its body, if that
        # came, too), the ones that wait for their turn, and the one that is answered
        self._latest: Exchange | None = None
        self._first: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._last = False  # whether the next answer is the last one
        self._current: Exchange | None = None
        # flow
        self._read_paused = False
        self.write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._unsent = 0
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- the event loop's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._ip = peer[0] if isinstance(peer, tuple) else ""
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._state.connections.add(self)
        if len(self._state.connections) > self._limits.max_connections:
            self._refuse(MatrixError("M_UNKNOWN", 503, "The server has too many connections"))
            return
        self._start_head_timer()
        if self._state.ending:
            self.shut_down()
        if self._begun_elsewhere:
            self.data_received(self._begun_elsewhere)
            self._begun_elsewhere = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; who answers a request on it is told."""
        self._state.lost(self)
        self._stop_head_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._waiting.clear()
        if self._current is not None:
            self._current.lose()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as the bounds allow."""
        if self.transport.is_closing():
            return
        between = self._current is None and not self._waiting and not self._in_message
        if between and (again := self._state.heads.find(data)) is not None:
            self._stop_head_timer()
            self._stays = True
            self._request_bytes = b"" if self._begun_elsewhere else data
            self._start(Exchange(self, *again, self._ip, self._scheme))
            self._request_bytes = b""
            return
        if self._state.move is not None and not self._begun_elsewhere:
            self._note_request_bytes(data, is_first=between)
        self._bytes_in_head += len(data)
        self._begun = 0
        failed = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here: the request is answered as if it had not asked
        except httptools.HttpParserError:
            failed = True
        if (first := self._first) is not None:
            self._first = None
            self._start(first)
        if failed:
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse_head()
            else:
                self._refuse(MatrixError("M_UNKNOWN", 400, "This is not a valid HTTP request"))
            return
        if between and self._begun == 1 and not self._in_message:
            assert self._latest is not None
            if self._latest.head.known is not None:
                self._state.heads.keep(data, self._latest.head)
        if self._reading_head:
            # The parser gathers a header of any length before it tells of it, so the bytes are counted here.
            if self._bytes_in_head > self._limits.max_head_bytes:
                self._refuse_head()
            elif self._head_timer is None:
                self._start_head_timer()

    def _note_request_bytes(self, data: bytes, *, is_first: bool) -> None:
        if is_first:
            self._request_bytes = data
        elif self._request_bytes:
            self._request_bytes += data
        if len(self._request_bytes) > _MAX_MOVED_BYTES:
            self._request_bytes = b""

    def pause_writing(self) -> None:
        """Know that the client takes its answers too slowly."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Know that the client has taken most of what it was sent."""
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # -- the parser's side -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reading_head = self._in_message = True
        self._begun += 1
        self._url = b""
        self._headers = []
        self._expects_continue = False
        self._head_bytes = self._bytes_in_head = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Those that come behind a body mean nothing here."""
        self._count_head(len(name) + len(value) + 4)
        if self._reading_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = True
            self._headers.append((name, value))

    def _count_head(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self._limits.max_head_bytes:
            raise ValueError("the head is too large")  # the parser stops and data_received refuses

    def on_headers_complete(self) -> None:
        """Have the request answered next, or put it behind those that came before it."""
        self._reading_head = False
        self._stop_head_timer()
        raw_path, query_string = _split(self._url)
        modern = self._parser.get_http_version() != "1.0"
        head = Head(
            method=self._parser.get_method().decode("ascii"),
            raw_path=raw_path,
            query_string=query_string,
            headers=self._headers,
            modern=modern,
            keep_alive=modern and self._parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )
        self._latest = Exchange(self, head, None, self._ip, self._scheme)
        if self._current is None and not self._waiting:
            self._current = self._first = self._latest
        elif len(self._waiting) < _MAX_PIPELINED:
            self.pause_reading()
            self._waiting.append(self._latest)
        else:
            raise ValueError("too many requests at once")  # the parser stops and data_received refuses

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        assert self._latest is not None
        self._latest.feed(body)

    def on_message_complete(self) -> None:
        """End a request."""
        assert self._latest is not None
        self._in_message = False
        self._latest.feed_end()

    # -- the exchange's side ---------------------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        if self._state.successor is not None:
            if self._request_bytes and self._go_on_elsewhere(self._state.successor):
                exchange.done = True
                return
            exchange.keep_alive = exchange.keep_alive and bool(self._waiting)
        if self._last:
            exchange.keep_alive = False
        self._state.exchanges.add(exchange)
        self._serve(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Forget a request; if its answer broke off, the connection is of no more use."""
        self._state.answered(exchange)
        if exchange.done or exchange.gone:
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # who takes nothing would never let it be closed
        else:
            self.transport.close()

    def answered(self) -> None:
        """Go on with the next request."""
        self._current = None
        self._request_bytes = b""  # with what may follow in them: nobody is to answer this one again
        self._idle_since = self._loop.time()
        if self._idle_timer is None:
            self._start_idle_timer(self._limits.keep_alive_s)
        if self._state.successor is not None and not self._waiting:
            self._loop.call_later(LINGER_S, self._leave_if_idle)
        if self._waiting:
            # Not from here: many that are answered at once would stand on each other's shoulders.
            self._loop.call_soon(self._start_next)
        elif self._read_paused:
            self.resume_reading()

    def _start_next(self) -> None:
        if self._waiting and self._current is None and not self.transport.is_closing():
            self._start(self._waiting.popleft())
            if self._read_paused and not self._waiting:
                self.resume_reading()

    async def drain(self) -> None:
        """Wait until the client has taken most of what it was sent, or is gone."""
        while self.write_paused:
            self._drained = self._loop.create_future()
            await self._drained

    def pause_reading(self) -> None:
        """Take no more of what the client sends for now."""
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take more of what the client sends."""
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    @property
    def may_move(self) -> bool:
        """Whether the connection may go to a worker that is better asked for what is written."""
        return not self._stays and self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether another worker could answer the current request: all bytes of it are here, and no keys."""
        return self._state.move is not None and bool(self._request_bytes) and self._scheme != "https"

    def move(self, name: str) -> bool:
        """Have another worker answer the current request and all that come; False if that cannot be.

        Nothing may have been sent of the answer, and nothing read of the body but by the parser.
        """
        return self.is_whole and self._give_to(name, self._request_bytes)

    def _give_to(self, name: str, begun: bytes) -> bool:
        move = self._state.move
        if (
            move is None
            or self._scheme == "https"
            or self._waiting  # their order is known here alone
            or self.transport.is_closing()
            or self.transport.get_write_buffer_size()
        ):
            return False
        if not move(name, self.transport.get_extra_info("socket").fileno(), begun):
            return False
        self.transport.close()
        return True

    def stay(self) -> None:
        """Keep this connection here: its client polls, and what it needs for that is in memory here.

        That holds for what is written, which is passed on then; ``move`` takes it away all the same.
        """
        self._stays = True
        self._request_bytes = b""  # whoever waits for long need not be kept in mind

    def leave(self, after_s: float) -> None:
        """Go on where ``successor`` says, with the next request, or without one after so many seconds.

        Where that cannot be, the connection is closed after the request that is being answered.
        """
        if self._current is None:
            self._loop.call_later(after_s, self._leave_if_idle)
        elif not self._waiting and (self._state.move is None or self._scheme == "https"):
            self._current.keep_alive = False

    def _leave_if_idle(self, tries: int = 3) -> None:
        successor = self._state.successor
        if self._current is not None or self._waiting or self._in_message or successor is None:
            return  # a request that is on its way finds it as well
        if self._go_on_elsewhere(successor):
            return
        if tries > 1 and self._state.move is not None and self._scheme != "https":
            self._loop.call_later(_AGAIN_S, self._leave_if_idle, tries - 1)  # it may be taken then
        else:
            self.transport.close()

    def _go_on_elsewhere(self, successor: Successor) -> bool:
        name = successor(self._request_bytes)
        return name is not None and self._give_to(name, self._request_bytes)

    def shut_down(self) -> None:
        """Close the connection after the request that is being answered, or that is on its way already.

        A client that just sent one on an idle connection would else find it cut, and not know what became
        of it: so idle connections stay for ``LINGER_S`` more.
        """
        self._last = True
        if self._current is None:
            self._loop.call_later(LINGER_S, self._close_if_idle)
        else:
            self._current.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._current is None and not self._waiting:
            self.transport.close()

    # -- bounds ----------------------------------------------------------------------------------------

    def _start_idle_timer(self, seconds: float) -> None:
        self._idle_timer = self._loop.call_later(seconds, self._look_if_idle)

    def _look_if_idle(self) -> None:
        """Close an idle connection; one whose client takes nothing of its answer any more is cut.

        The timer goes on while requests come: to look now and then costs less than to start it anew for each.
        """
        self._idle_timer = None
        limit_s = self._limits.keep_alive_s
        remaining_s = self._idle_since + limit_s - self._loop.time()
        unsent = self.transport.get_write_buffer_size()
        is_next = (self._waiting or self._reading_head) and not self.transport.is_closing()
        if self._current is not None or is_next:
            return  # the end of the next answer starts the timer
        if remaining_s > 0:
            self._start_idle_timer(remaining_s)
        elif not unsent:
            self.transport.close()
        elif unsent == self._unsent:
            self.transport.abort()
        else:
            self._unsent = unsent
            self._start_idle_timer(limit_s)

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._limits.head_timeout_s, self._head_timed_out)

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
        if self._current is None:
            body = encode(error.body())
            head = render_head(Response(error.status), len(body))
            self.transport.write(head + b"connection: close\r\n\r\n" + body)
        # Else an answer to an earlier request is under way, and this one would mix with it.
        self.transport.close()
        if self._idle_timer is None:
            self._start_idle_timer(self._limits.keep_alive_s)


def _split(url: bytes) -> tuple[bytes, bytes]:
    """Give path and query of a request's target. Raises ``ValueError`` if it has no path."""
    if url.startswith(b"/") and b"#" not in url:
        path, _, query = url.partition(b"?")
        return path, query
    parsed = httptools.parse_url(url)
    if parsed.path is None:
        raise ValueError("the target has no path")  # the parser stops and data_received refuses
    return parsed.path, parsed.query or b""
