"""One request on a connection and the answer to it: the body comes in here, head and body go out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ranvier.http.body import ClientGoneError
from ranvier.http.heads import Head

# Larger bodies are not copied behind their heads. Smaller ones go with them in one system call.
_JOINED_UP_TO = 64 * 1024
# The connection stops reading while more than this waits to be taken.
_HIGH_WATER = 64 * 1024
_CLOSE = b"connection: close\r\n\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"


class Latest:
    """Remember the latest answer whole, head and body, for those who are given the same one next."""

    __slots__ = ("_body", "_whole")

    def __init__(self) -> None:
        self._body = self._whole = b""

    def whole(self, head: bytes, body: bytes) -> bytes:
        """Give the bytes of an answer; the head is the same whenever the body is."""
        if body is not self._body:
            self._body, self._whole = body, head + b"\r\n" + body
        return self._whole


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    @property
    def transport(self) -> asyncio.Transport:
        """The bytes to the client."""

    @property
    def write_paused(self) -> bool:
        """Whether the client takes its answers too slowly."""

    def pause_reading(self) -> None:
        """Take no more of the request for now."""

    def resume_reading(self) -> None:
        """Take more of the request."""

    async def drain(self) -> None:
        """Wait until the client has taken most of what it was sent, or is gone."""

    def answered(self) -> None:
        """Go on with the next request."""

    @property
    def may_move(self) -> bool:
        """Whether the connection may go to a worker that is better asked for what is written."""

    @property
    def is_whole(self) -> bool:
        """Whether another worker could answer the current request and all that come."""

    def move(self, name: str) -> bool:
        """Have another worker answer the current request and all that come; False if that cannot be."""

    def stay(self) -> None:
        """Keep this connection here."""

    def ended(self, exchange: Exchange) -> None:
        """Know that nobody answers this request any more: it was answered, or will not be."""


class Exchange:
    """Hold one request's head, give its body, and send the answer.

    ``raw_path`` and ``headers`` are those of ``head``, which may have come before with another ``since``;
    that is what it is now, None for a head that is new. ``gone`` is true once the connection is lost before
    the answer was complete; with ``cancel_when_gone`` that cancels ``task``. Where there is no task
    ``on_gone`` is called; and ``on_abandoned``, or else ``on_gone``, when the server waits no longer for the
    answer. ``keep_alive`` false closes the connection after the answer.
    """

    __slots__ = (
        "_arrival",
        "_body",
        "_body_complete",
        "_carrier",
        "_chunked",
        "_expects_continue",
        "cancel_when_gone",
        "done",
        "gone",
        "head",
        "headers",
        "ip",
        "keep_alive",
        "method",
        "on_abandoned",
        "on_gone",
        "raw_path",
        "scheme",
        "since",
        "task",
    )

    def __init__(
        self,
        carrier: Carrier,
        head: Head,
        since: bytes | None,
        ip: str,
        scheme: str,
    ) -> None:
        self.head = head
        self.method = head.method
        self.raw_path = head.raw_path
        self.headers = head.headers
        self.since = since
        self.ip = ip
        self.scheme = scheme
        self.keep_alive = head.keep_alive
        self.task: asyncio.Task[None] | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_abandoned: Callable[[], None] | None = None
        self.cancel_when_gone = False
        self.gone = False
        self.done = False
        self._carrier = carrier
        self._chunked = False
        self._expects_continue = head.expects_continue
        self._body = b""
        self._body_complete = False
        self._arrival: asyncio.Future[None] | None = None

    @property
    def query_string(self) -> bytes:
        """Give the query as it came."""
        head, since = self.head, self.since
        return head.query_string if since is None else head.before + since + head.after

    # -- the request's body ----------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take a piece of the body from the connection. After the answer it is thrown away."""
        if self.done:
            return
        self._body += data
        if len(self._body) > _HIGH_WATER:
            self._carrier.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        """Know that the body is complete."""
        self._body_complete = True
        self._wake()

    def whole_body(self) -> bytes | None:
        """Give the body if all of it is here, else None."""
        return self._body if self._body_complete else None

    async def read(self) -> tuple[bytes, bool]:
        """Wait for a piece of the body; give it and whether more follows. Raises ``ClientGoneError``."""
        if self._expects_continue:
            self._expects_continue = False
            self._carrier.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._body and not self._body_complete:
            if self.gone:
                raise ClientGoneError
            self._carrier.resume_reading()
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        piece, self._body = self._body, b""
        return piece, not self._body_complete

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def lose(self) -> None:
        """Know that the client is gone."""
        self.gone = True
        self._wake()
        if self.task is None:
            self._tell_gone()
        elif self.cancel_when_gone:
            self.task.cancel()

    def abandon(self) -> None:
        """Break off whoever makes the answer: the server stops and has waited long enough."""
        if self.task is not None:
            self.task.cancel()
        elif self.on_abandoned is not None:
            self.on_abandoned()
        else:
            self._tell_gone()

    def _tell_gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone()

    # -- the answer ------------------------------------------------------------------------------------

    @property
    def write_paused(self) -> bool:
        """Whether the client takes its answers too slowly, so that ``drain`` would wait."""
        return self._carrier.write_paused

    async def drain(self, timeout_s: float) -> None:
        """Wait until the client has taken most of what it was sent, or is gone.

        Raises ``ClientGoneError`` for one that takes nothing for ``timeout_s``.
        """
        carrier = self._carrier
        unsent = carrier.transport.get_write_buffer_size()
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    return await carrier.drain()
            except TimeoutError:
                before, unsent = unsent, carrier.transport.get_write_buffer_size()
                if unsent >= before:
                    raise ClientGoneError from None

    def send_now(self, head: bytes, body: bytes) -> None:
        """Send a whole answer without waiting until the client has taken what came before.

        ``head`` is its status line and headers, each line with its end.
        """
        if self.gone:
            return
        head = self._end_head(head)
        if self.method == "HEAD":
            self._carrier.transport.write(head)
        elif len(body) <= _JOINED_UP_TO:
            self._carrier.transport.write(head + body)
        else:
            self._carrier.transport.writelines((head, body))
        self._complete()

    def send_whole(self, head: bytes, body: bytes, latest: Latest) -> None:
        """Do the same where many are sent one answer: those who keep their connection get the same bytes."""
        if self.gone or not self.keep_alive or self._expects_continue or self.method == "HEAD":
            self.send_now(head, body)
            return
        self._carrier.transport.write(latest.whole(head, body))
        self._complete()

    def start(self, head: bytes, *, sized: bool) -> None:
        """Begin an answer whose body comes piece by piece: ``send_piece``, then ``finish``.

        Between two pieces, ``drain`` is to be awaited while ``write_paused``.

        ``sized`` says that the head tells the body's length.
        """
        self._chunked = self.head.modern and not sized
        if not self._chunked and not sized:
            self.keep_alive = False  # the end of the connection is the end of the body
        if not self.gone:
            self._carrier.transport.write(self._end_head(head + _CHUNKED if self._chunked else head))

    def send_piece(self, piece: bytes) -> None:
        """Send a piece of the body."""
        if piece and not self.gone:
            self._carrier.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    def finish(self) -> None:
        """End an answer that was begun with ``start``."""
        if not self.gone:
            if self._chunked:
                self._carrier.transport.write(b"0\r\n\r\n")
            self._complete()

    def _end_head(self, head: bytes) -> bytes:
        if self._expects_continue:
            self.keep_alive = False  # nobody knows whether the body still comes
        return head + (b"\r\n" if self.keep_alive else _CLOSE)

    @property
    def may_move(self) -> bool:
        """Whether it is of use to ask to whom the connection is to go with what is written."""
        return self._carrier.may_move

    @property
    def is_whole(self) -> bool:
        """Whether it is of use to ask to whom the connection is to go with a client that polls."""
        return self._carrier.is_whole

    def move(self, name: str) -> bool:
        """Have the worker of a name answer instead, and go on with the connection; False if it cannot be.

        To be asked before the body is read. If it is done only ``end`` remains to be called.
        """
        self.done = self._carrier.move(name)
        return self.done

    def stay(self) -> None:
        """Keep the connection here, whatever is written on it next."""
        self._carrier.stay()

    def end(self) -> None:
        """Be done with the request, answered or not; an answer that broke off ends the connection."""
        self._carrier.ended(self)

    def _complete(self) -> None:
        self.done = True
        if not self.keep_alive:
            self._carrier.transport.close()
        self._carrier.answered()
