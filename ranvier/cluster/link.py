"""The wire between workers: many calls at once over one connection, to a UNIX socket or a TCP address.

A call is begun by the other side before its deadline or not at all, so a caller that heard nothing until then
may do the work itself. Deadlines are told in the time of the other side, which says in all that it sends what
that is: what came late makes a deadline too early, and never too late. Clocks of the day are not asked.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

from ranvier.cluster import frames
from ranvier.cluster.frames import FrameError, FrameReader
from ranvier.log.clock import note_asked, steady_s
from ranvier.spec.errors import MatrixError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 1.0
ANSWER_WITHIN_S: Final = 120.0
# A call that takes longer than this, or twice as long, is confirmed before it is answered; most are not worth
# a message more.
_CONFIRM_AFTER_S: Final = 0.02
HASTE_S: Final = 0.2
"""A call that comes with less time left than this is confirmed before it is begun.

Who confirms a call while doing it, and stands still meanwhile, does what its caller does, too, by then.
"""
# What was confirmed at the deadline is here by then.
_MARGIN_S: Final = 0.05
# So often it is looked whose time is over: that is cheaper than a timer for each call.
_LOOK_EVERY_S: Final = 0.02
_TURN_S: Final = 0.001
_MAX_STRANGER_FRAME: Final = 64 * 1024
_TIME_KEPT_S: Final = 60.0

Answerer = Callable[[bytes], Awaitable[bytes]]
Greeter = Callable[[bytes], None]
Clock = Callable[[], float]
"""Gives seconds of a clock that never goes back, and goes on while the machine is suspended."""


class NotAcceptedError(Exception):
    """Say that the other worker did not begin a call, and never will."""


class LinkLostError(Exception):
    """Say that the other worker went away with a call that it may have carried out."""


Outcome = bytes | NotAcceptedError | LinkLostError
Told = Callable[[Outcome], None]
"""Is told the answer to a call, or why there is none; must not raise."""


class _Call:
    __slots__ = ("accepted", "answer_within_s", "told", "until")

    def __init__(self, told: Told, until: float, answer_within_s: float) -> None:
        self.told = told
        self.until = until
        self.answer_within_s = answer_within_s
        self.accepted = False


class Link(asyncio.Protocol):
    """Call one other worker. Made by ``connect``; ``lost`` is called when the connection ends."""

    def __init__(self, secret: str, announcement: bytes, lost: Callable[[], None]) -> None:
        self._secret = secret
        self._announcement = announcement
        self._lost = lost
        self._reader = FrameReader(self._take)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self._looking: asyncio.TimerHandle | None = None
        self._retired = False
        self._nonce = os.urandom(frames.NONCE_BYTES)
        # How much more the other side's clock says than ours, or a little less than that; and since when.
        self._ahead_s, self._ahead_since = -math.inf, 0.0

    @property
    def is_open(self) -> bool:
        """Tell whether calls can be made."""
        return self._transport is not None and not self._transport.is_closing() and not self._retired

    async def welcomed(self) -> None:
        """Wait until the other side has let us in. Raises ConnectionError."""
        await self._welcome

    async def call(
        self, body: bytes, *, accept_within_s: float, answer_within_s: float = ANSWER_WITHIN_S
    ) -> bytes:
        """Have the other worker do something and give its answer.

        Raises NotAcceptedError when it did not begin, LinkLostError when it went away after that or did not
        answer in time.
        """
        answer: asyncio.Future[bytes] = self._loop.create_future()
        id = self.begin(
            body, partial(_resolve, answer), accept_within_s=accept_within_s, answer_within_s=answer_within_s
        )
        try:
            return await answer
        finally:
            self.forget(id)

    def begin(
        self, body: bytes, told: Told, *, accept_within_s: float, answer_within_s: float = ANSWER_WITHIN_S
    ) -> int:
        """Do the same without a task: ``told`` is called when the call is over. Give what ``forget`` takes.

        Raises NotAcceptedError if the link is not open.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self._retired:
            raise NotAcceptedError
        self._last_id += 1
        id, now = self._last_id, steady_s()
        self._calls[id] = _Call(told, now + accept_within_s + _MARGIN_S, answer_within_s)
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_EVERY_S, self._look_around)
        transport.write(frames.encode(frames.CALL, id, body, now + self._ahead_s + accept_within_s))
        return id

    def forget(self, id: int) -> None:
        """Wait no longer for a call, if it is not over; the other worker may do it all the same."""
        self._calls.pop(id, None)

    def tell(self, announcement: bytes) -> None:
        """Send our changed announcement."""
        if self.is_open and self._transport is not None:
            self._transport.write(frames.encode(frames.NEWS, body=announcement))

    def notify(self, body: bytes) -> None:
        """Tell the other worker something that needs no answer; lost when the link is not open."""
        if self.is_open and self._transport is not None:
            self._transport.write(frames.encode(frames.NOTICE, body=body))

    def close(self) -> None:
        """Close the connection, without waiting until the other side has taken what it was sent.

        It may stand still, and whoever waits for its answer is to be told now.
        """
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """Make no more calls, and close the connection once it is known what became of each.

        For another worker that is taken for dead and may only stand still. For what it has begun nobody waits
        any longer; what it has not begun it never will once the deadline is over, so its caller may do that.
        """
        self._retired = True
        for id, call in [(id, call) for id, call in self._calls.items() if call.accepted]:
            del self._calls[id]
            call.told(LinkLostError())
        if not self._calls:
            self.close()

    # -- the event loop's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection; the other side speaks first."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        try:
            self._reader.feed(data)
        except FrameError as error:
            logger.error("Another worker does not speak our language: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all that waits."""
        if not self._welcome.done():
            self._welcome.set_exception(
                ConnectionError("another worker refused us (is the secret the same?)")
            )
            self._welcome.exception()
        if self._looking is not None:
            self._looking.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            # Sent and never answered: a killed worker may have done it before it died.
            call.told(LinkLostError())
        self._lost()

    def _take(self, kind: int, id: int, their_time: float, body: bytes) -> None:
        now = steady_s()
        if their_time - now > self._ahead_s or now - self._ahead_since > _TIME_KEPT_S:
            self._ahead_s, self._ahead_since = their_time - now, now
        if kind == frames.ANSWER:
            if (call := self._calls.pop(id, None)) is not None:
                call.told(body)
        elif kind == frames.ACCEPTED:
            if (call := self._calls.get(id)) is not None and not call.accepted:
                call.accepted = True
                call.until += call.answer_within_s
        elif kind == frames.REFUSED:
            if (call := self._calls.pop(id, None)) is not None:
                call.told(NotAcceptedError())
        elif kind == frames.CHALLENGE:
            proof = frames.proof(self._secret, body)
            assert self._transport is not None
            hello = proof + self._nonce + self._announcement
            self._transport.write(frames.encode(frames.HELLO, body=hello))
        elif kind == frames.WELCOME:
            if not hmac.compare_digest(frames.proof(self._secret, self._nonce, b"server"), body):
                raise FrameError("it does not know the secret (worker_replication_secret)")
            if not self._welcome.done():
                self._welcome.set_result(None)

    def _look_around(self) -> None:
        """See which calls were not begun or not answered in time."""
        self._looking = None
        if not self._calls:
            if self._retired:
                self.close()
            return
        now = steady_s()
        if any(call.until <= now for call in self._calls.values()):
            # If this process stood still, what came meanwhile is read after its timers.
            self._loop.call_later(_TURN_S, self._end_calls, now)
        self._looking = self._loop.call_later(_LOOK_EVERY_S, self._look_around)

    def _end_calls(self, now: float) -> None:
        for id, call in [(id, call) for id, call in self._calls.items() if call.until <= now]:
            del self._calls[id]
            call.told(LinkLostError() if call.accepted else NotAcceptedError())


def _resolve(answer: asyncio.Future[bytes], outcome: Outcome) -> None:
    if answer.done():  # its caller is gone
        return
    if isinstance(outcome, bytes):
        answer.set_result(outcome)
    else:
        answer.set_exception(outcome)


async def connect(address: str, *, secret: str, announcement: bytes, lost: Callable[[], None]) -> Link:
    """Connect to another worker. Raises ``OSError``, ``TimeoutError``."""
    loop = asyncio.get_running_loop()

    def make() -> Link:
        return Link(secret, announcement, lost)

    scheme, _, place = address.partition(":")
    link: Link
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if scheme == "unix":
            _, link = await loop.create_unix_connection(make, place)
        else:
            host, _, port = place.rpartition(":")
            _, link = await loop.create_connection(make, host.strip("[]"), int(port))
        try:
            await link.welcomed()
        except BaseException:
            link.close()
            raise
    return link


class LinkServer:
    """Answer calls of other workers.

    ``answer`` does what a call asks, or raises NotAcceptedError before it has done anything; ``greet`` is
    told the announcements of those who connect, ``notice`` what they notify of. Before one has proven the
    secret, nothing that it sends is looked at.
    """

    def __init__(
        self,
        *,
        secret: str,
        answer: Answerer,
        greet: Greeter,
        clock: Clock = steady_s,
        notice: Callable[[bytes], None] = lambda body: None,
    ) -> None:
        self._secret = secret
        self.clock = clock
        self.answer = answer
        self.greet = greet
        self.notice = notice
        self._loop = asyncio.get_running_loop()
        self._tasks = set[asyncio.Task[Any]]()
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Served] = set()
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def listen(self, sock: Any) -> None:
        """Serve on a bound socket."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: _Served(self), sock=sock))

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; finish those that were begun."""
        for connection in self._connections:
            connection.closing = True
        for server in self._servers:
            server.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests of other workers are broken off", self.running)
            for task in self._tasks:
                task.cancel()
        for connection in list(self._connections):
            connection.close()

    def begin(self) -> None:
        """Count a call in."""
        self.running += 1
        self._idle.clear()

    def end(self) -> None:
        """Count a call out, in its task."""
        if (task := asyncio.current_task()) is not None:
            self._tasks.discard(task)
        self.running -= 1
        if not self.running:
            self._idle.set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in a task. (One of the process's group takes longer to begin.)"""
        self._tasks.add(self._loop.create_task(work))

    def knows_secret(self, nonce: bytes, given: bytes) -> bool:
        """Tell whether a proof is right."""
        return hmac.compare_digest(frames.proof(self._secret, nonce), given)

    def proof(self, nonce: bytes) -> bytes:
        """Prove that this side knows the secret, too."""
        return frames.proof(self._secret, nonce, b"server")

    def joined(self, connection: _Served) -> None:
        """Keep a connection."""
        self._connections.add(connection)

    def left(self, connection: _Served) -> None:
        """Forget a connection."""
        self._connections.discard(connection)


class _Served(asyncio.Protocol):
    """One worker that calls us."""

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._reader = FrameReader(self._take, _MAX_STRANGER_FRAME)
        self._loop = asyncio.get_running_loop()
        self._nonce = os.urandom(frames.NONCE_BYTES)
        self._known = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._unconfirmed: dict[int, float] = {}  # calls that were begun, and when
        self._looking: asyncio.TimerHandle | None = None
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.joined(self)
        self._timer = self._loop.call_later(CONNECT_TIMEOUT_S * 5, self._no_hello)
        self._write(frames.CHALLENGE, body=self._nonce)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self)
        for timer in (self._timer, self._looking):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except FrameError as error:
            logger.error("A worker was refused: %s", error)
            self.close()

    def close(self) -> None:
        self._transport.close()

    def _no_hello(self) -> None:
        if not self._known:
            self.close()

    def _take(self, kind: int, id: int, deadline: float, body: bytes) -> None:
        if not self._known:
            self._take_hello(kind, body)
        elif kind == frames.CALL:
            if self.closing or self._server.clock() > deadline:
                self._write(frames.REFUSED, id)
            else:
                self._server.start(self._answer(id, deadline, body))
        elif kind == frames.NEWS:
            self._server.greet(body)
        elif kind == frames.NOTICE:
            self._server.notice(body)

    def _take_hello(self, kind: int, body: bytes) -> None:
        length = len(frames.proof("", b""))
        if kind != frames.HELLO or not self._server.knows_secret(self._nonce, body[:length]):
            raise FrameError("it does not know the secret (worker_replication_secret)")
        self._known = True
        self._reader.max_frame = frames.MAX_FRAME
        end = length + frames.NONCE_BYTES
        self._server.greet(body[end:])
        self._write(frames.WELCOME, body=self._server.proof(body[length:end]))

    async def _answer(self, id: int, deadline: float, asked: bytes) -> None:
        self._server.begin()
        note_asked()  # before the deadline is looked at for the last time
        try:
            left_s = deadline - self._server.clock()
            if left_s < 0:  # it was in time when it was read
                raise NotAcceptedError
            if left_s < HASTE_S:
                self._write(frames.ACCEPTED, id)
                await asyncio.sleep(0)  # then it is sent, however long the work keeps this process
                if self._server.clock() > deadline:  # it stood still, perhaps before that was sent
                    raise NotAcceptedError
            else:
                self._confirm_later(id)
            answer = await self._server.answer(asked)
            self._write(frames.ANSWER, id, answer)
        except NotAcceptedError:
            self._write(frames.REFUSED, id)
        except (Exception, asyncio.CancelledError) as error:
            # The caller cannot know how far it came: the end of the connection tells it just that.
            if not isinstance(error, MatrixError | asyncio.CancelledError):
                logger.exception("A call of another worker failed")
            self.close()
        finally:
            self._unconfirmed.pop(id, None)
            self._server.end()

    def _confirm_later(self, id: int) -> None:
        self._unconfirmed[id] = self._loop.time()
        if self._looking is None:
            self._looking = self._loop.call_later(_CONFIRM_AFTER_S, self._confirm)

    def _confirm(self) -> None:
        """Confirm the calls that were begun some time ago."""
        self._looking = None
        if self._transport.is_closing():
            return
        until = self._loop.time() - _CONFIRM_AFTER_S
        for id in [id for id, begun in self._unconfirmed.items() if begun <= until]:
            del self._unconfirmed[id]
            self._write(frames.ACCEPTED, id)
        if self._unconfirmed:
            self._looking = self._loop.call_later(_CONFIRM_AFTER_S, self._confirm)

    def _write(self, kind: int, id: int = 0, body: bytes = b"") -> None:
        if not self._transport.is_closing():  # else its caller has gone on without it
            self._transport.write(frames.encode(kind, id, body, self._server.clock()))
