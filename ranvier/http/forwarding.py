"""Requests that another worker is better asked for: out to it, and in from it.

The worker that the client talks to finds out who asks, counts its limits and reads the body; the other one
runs the handler and renders the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Final

import msgspec

from ranvier.cluster.currency import Currency
from ranvier.cluster.forwarding import Forwarding
from ranvier.cluster.frames import UNREADABLE
from ranvier.cluster.link import LinkLostError, NotAcceptedError, Outcome
from ranvier.cluster.placement import ROOM, Placement
from ranvier.cluster.relief import Relief
from ranvier.cluster.writers import Writers
from ranvier.http.app import Application, Hear
from ranvier.http.rendering import render_error, render_unexpected
from ranvier.http.request import Request
from ranvier.http.response import JSON, Response, encode
from ranvier.http.route import PLACED_BY_USER, PLACED_WITH_WRITERS
from ranvier.http.router import Router
from ranvier.log.clock import Clock
from ranvier.log.standstill import Standstill
from ranvier.log.tail import Tail
from ranvier.rooms.room import is_recent
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError
from ranvier.users.accounts import is_as_known_at
from ranvier.users.requester import Requester
from ranvier.wire.forwarded import ForwardedAnswer, ForwardedRequest

logger = logging.getLogger(__name__)

# What a handler may look at; everything else was dealt with, and the access token goes nowhere.
_HEADERS: Final = frozenset({b"user-agent", b"content-type", b"x-forwarded-for"})
_KNOWN_REQUESTERS: Final = 4096
# Mostly somebody who writes again and again.
_encode_requester = lru_cache(_KNOWN_REQUESTERS)(msgspec.msgpack.Encoder().encode)
_decode_requester = lru_cache(_KNOWN_REQUESTERS)(msgspec.msgpack.Decoder(Requester).decode)


class Neighbours:
    """What the application knows of other workers: nothing older than theirs, and whom to ask."""

    def __init__(
        self,
        *,
        currency: Currency,
        forwarding: Forwarding,
        placement: Placement,
        writers: Writers,
        relief: Relief,
        rooms: Rooms,
        tail: Tail,
        clock: Clock,
        standstill: Standstill,
    ) -> None:
        self._currency = currency
        self._forwarding = forwarding
        self._placement = placement
        self._writers = writers
        self._relief = relief
        self._rooms = rooms
        self._tail = tail
        self._clock = clock
        self._standstill = standstill

    def is_current(self) -> bool:
        """Tell whether there surely is nothing to catch up with."""
        return self._currency.is_current()

    def catch_up(self) -> Awaitable[None] | None:
        """Give what is to be awaited before anything is read for a request; mostly nothing."""
        return self._currency.catch_up()

    def is_only_writer(self) -> bool:
        """Tell whether this worker is the one to be asked for whatever is written."""
        return self._writers.is_alone()

    def target(self, request: Request) -> str | None:
        """Give the worker that is to answer, though the connection stays here; None for this one.

        Writes go to the worker of the room (or what else the route is placed by), where they queue and share
        commits. But a room in which nobody wrote elsewhere just now is written here: that is cheaper than to
        pass each request on, and who is overtaken all the same tries again. What is read, and what belongs to
        one user, is answered where it arrives.
        """
        key = self._placed_by(request)
        return None if not key or self._is_quiet(key) else self._forwarding.target(ROOM, key)

    def is_crowded(self) -> bool:
        """Tell whether this worker has too much to do."""
        return self._relief.is_due()

    def relief(self) -> str | None:
        """Give the worker that is to go on with somebody who polls here; None for this one."""
        return self._relief.find()

    def home(self, request: Request) -> str | None:
        """Give the worker to which the connection is to go with this request; None if it may stay.

        As ``target``; but a worker on which no rooms are placed, or that has too much to do, gives away those
        who write, however quiet their rooms are: a room that is placed on another machine, and one that is
        only now made, to a writer of this one.
        """
        key = self._placed_by(request)
        if key is None:
            return None
        if key and not self._is_quiet(key):
            return self._forwarding.target(ROOM, key) if self._placement.is_near(ROOM, key) else None
        name = self._placement.nearby(ROOM, key or request.id, self._writers.nearby)
        return name if self._writers.yields_to(name) else None

    def _placed_by(self, request: Request) -> str | None:
        """Give what ``_written`` gives, unless this worker alone knows that a request may come too late."""
        key = _written(request)
        if key is None or (not _is_repeatable(request) and self._standstill.has_just_ended()):
            return None
        return key

    def _is_quiet(self, key: str) -> bool:
        """Tell whether it is known that nobody wrote elsewhere just now."""
        now_ms = self._clock.now_ms()
        room = self._rooms.held(key)
        if room is not None:
            return not room.is_written_elsewhere(now_ms)
        if not key.startswith("!"):
            return False  # an alias: nobody knows which room it is
        latest = self._tail.latest_of_room(key, self._tail.pos, 1)
        return not any(is_recent(it.origin_server_ts, now_ms) for it in latest)

    async def ask(self, name: str, request: Request) -> bytes | Response | None:
        """Have another worker answer; None if it is to be done here after all. Raises 503."""
        try:
            forwarded = _forwarded(request, self._tail.pos)
            answer = await self._forwarding.ask(name, forwarded, repeatable=_is_repeatable(request))
        except LinkLostError:
            if (error := _lost(request)) is not None:
                raise error from None
            return None
        return None if answer is None else _result(answer)

    def pass_on(self, name: str, request: Request, hear: Hear) -> Callable[[], None] | None:
        """Do the same without a task: ``hear`` is called with what ``ask`` gives, or raises.

        This worker need not have followed the log as far as others: the other one looks whether what was
        known here of who asks has changed since. Give what ends the wait; None if it is to be done here, and
        then ``hear`` is not called.
        """
        told = partial(self._tell, request, hear)
        forwarded = _forwarded(request, self._tail.pos)
        return self._forwarding.begin(name, forwarded, told, repeatable=_is_repeatable(request))

    def _tell(self, request: Request, hear: Hear, outcome: Outcome) -> None:
        try:
            answer = self._forwarding.read(outcome)
        except LinkLostError:
            hear(_lost(request))
        except UNREADABLE as error:
            hear(error)
        else:
            hear(None if answer is None else _result(answer))


def _forwarded(request: Request, known_at: int) -> ForwardedRequest:
    requester = request.requester_or_none
    return ForwardedRequest(
        method=request.method,
        path=request.path,
        query_string=request.query_string,
        headers=[header for header in request.raw_headers if header[0] in _HEADERS],
        body=request.body,
        ip=request.ip,
        scheme=request.scheme,
        request_id=request.id,
        requester=b"" if requester is None else _encode_requester(requester),
        endpoint=request.route.name,
        params=request.params,
        known_at=known_at,
    )


def _is_repeatable(request: Request) -> bool:
    """Tell whether to do a request again does nothing: it has a transaction id."""
    return "txn_id" in request.params


def _result(answer: ForwardedAnswer) -> bytes | Response:
    """Give an answer as a handler would: mostly it is JSON and nothing else."""
    if answer.status == 200 and answer.content_type == JSON and not answer.headers:
        return answer.body
    return Response(answer.status, answer.body, answer.headers, answer.content_type)


def _lost(request: Request) -> MatrixError | None:
    """Give the error for a request of which nobody knows whether it was done; None if it may be repeated.

    A piece of state may have been set and changed again since.
    """
    if _is_repeatable(request):
        return None
    return MatrixError("M_UNKNOWN", 503, "The worker that did this is gone; look before you try again")


def _written(request: Request) -> str | None:
    """Give the room that a request writes to, or what else it is placed by; "" for one that makes a room."""
    route = request.route
    if request.method == "GET" or route.placed_by is None or route.placed_by == PLACED_BY_USER:
        return None
    return "" if route.placed_by == PLACED_WITH_WRITERS else request.params[route.placed_by]


class ForwardedRequests:
    """Answer requests that other workers pass on, by the routes of this one."""

    def __init__(self, *, application: Application, router: Router, currency: Currency, tail: Tail) -> None:
        self._application = application
        self._router = router
        self._currency = currency
        self._tail = tail

    async def perform(self, forwarded: ForwardedRequest) -> ForwardedAnswer:
        """Answer one request; an error is an answer, too.

        Raises NotAcceptedError if this worker is far behind, or who asks may be no more who they were.
        """
        self._application.begin()
        try:
            return await self._respond(forwarded)
        finally:
            self._application.answered_for_others += 1
            self._application.end()

    async def _respond(self, forwarded: ForwardedRequest) -> ForwardedAnswer:
        try:
            bound, params = self._router.named(forwarded.method, forwarded.endpoint), forwarded.params
            if bound is None:
                bound, params = self._router.find(forwarded.method, forwarded.path)
            if bound.route.follows and (behind := self._currency.catch_up()) is not None:
                await _follow(behind)
            requester = _decode_requester(forwarded.requester) if forwarded.requester else None
            if requester is not None and not self._knows_no_other(requester, forwarded.known_at):
                raise NotAcceptedError
            request = Request(
                forwarded.method,
                forwarded.path,
                bound.route,
                params=params,
                query_string=forwarded.query_string,
                headers=forwarded.headers,
                ip=forwarded.ip,
                scheme=forwarded.scheme,
                body=forwarded.body,
                requester=requester,
                request_id=forwarded.request_id,
            )
            result = await bound.run(request)
            if isinstance(result, Response):
                return _answer(result)
            return ForwardedAnswer(200, JSON, {}, encode(result))
        except MatrixError as error:
            return _answer(render_error(error))
        except NotAcceptedError:
            raise
        except Exception:
            logger.exception("Request %s, passed on by another worker, failed", forwarded.request_id)
            return _answer(render_unexpected(forwarded.request_id))

    def _knows_no_other(self, requester: Requester, known_at: int) -> bool:
        """Tell whether somebody is still who they were for a worker that had followed the log so far."""
        return known_at < 0 or is_as_known_at(self._tail, requester.user_id, known_at)


async def _follow(behind: Awaitable[None]) -> None:
    """Come as far as all others. Raises NotAcceptedError if that takes long: whoever asks may be there."""
    try:
        await behind
    except MatrixError:
        raise NotAcceptedError from None


def _answer(response: Response) -> ForwardedAnswer:
    return ForwardedAnswer(
        response.status, response.content_type, dict(response.headers), encode(response.body)
    )
