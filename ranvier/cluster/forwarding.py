"""Pass a request on to the worker that has its room, or say that it is better done here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ranvier.cluster.link import Link, LinkLostError, NotAcceptedError
from ranvier.cluster.links import Links
from ranvier.cluster.placement import ROOM, Placement
from ranvier.wire.forwarded import ForwardedAnswer, ForwardedRequest, Pause, PauseRequest, Question

logger = logging.getLogger(__name__)

ACCEPT_WITHIN_S: Final = 0.25

_PAUSE_WITHIN_S: Final = 1.0

Perform = Callable[[ForwardedRequest], Awaitable[ForwardedAnswer]]
BeginPause = Callable[[str], Awaitable[int | None]]

_encoder = msgspec.msgpack.Encoder()
_question_decoder = msgspec.msgpack.Decoder(Question)
_answer_decoder = msgspec.msgpack.Decoder(ForwardedAnswer)
_pause_decoder = msgspec.msgpack.Decoder(Pause)


class Forwarding:
    """Ask the worker that a room (or another key) is placed on.

    Whoever has a room writes it without being overtaken; that is all that forwarding is for, so whatever
    stands in its way makes the work be done here.
    """

    def __init__(self, *, placement: Placement, links: Links, own_name: str) -> None:
        self._placement = placement
        self._links = links
        self._own_name = own_name
        self._deferring: set[str] = set()
        self.forwarded = 0
        self.fallen_back = 0

    def target(self, kind: str, key: str) -> str | None:
        """Give the name of the other worker that has a key; None if this one has it, or no link to it."""
        name = self._placement.place(kind, key).name
        if name == self._own_name:
            return None
        if self._links.find(name) is None:
            self.fallen_back += 1
            return None
        return name

    async def ask(self, name: str, request: ForwardedRequest) -> ForwardedAnswer | None:
        """Have another worker answer a request; None if it did not begin, so that it is to be done here.

        This worker may not have followed the log that far yet; whoever asks it next waits for that (see
        ``cluster.currency``). Raises LinkLostError when the other went away and nobody knows how far it came.
        """
        link = self._links.find(name)
        if link is None:
            return None
        try:
            body = await link.call(_encoder.encode(request), accept_within_s=ACCEPT_WITHIN_S)
        except NotAcceptedError:
            self.fallen_back += 1
            return None
        self.forwarded += 1
        return _answer_decoder.decode(body)

    async def go_first(self, room_id: str) -> int | None:
        """Have others write nothing into a room until this worker has.

        The room's worker is asked, or, if this is it, all others. Gives how far the log had come by then,
        None if nobody answers. While the room's worker is asked it may ask itself: see ``defers``.
        """
        name = self.target(ROOM, room_id)
        if name is None:
            links = self._links.open()
            positions = await asyncio.gather(*(_pause(link, room_id) for link in links))
            return max((pos for pos in positions if pos is not None), default=None)
        link = self._links.find(name)
        if link is None:
            return None
        self._deferring.add(room_id)
        try:
            return await _pause(link, room_id)
        finally:
            self._deferring.discard(room_id)

    def defers(self, room_id: str) -> bool:
        """Tell whether this worker writes nothing into a room because it waits for the room's worker."""
        return room_id in self._deferring


async def _pause(link: Link, room_id: str) -> int | None:
    question = _encoder.encode(PauseRequest(room_id))
    try:
        body = await link.call(question, accept_within_s=ACCEPT_WITHIN_S, answer_within_s=_PAUSE_WITHIN_S)
    except (NotAcceptedError, LinkLostError):
        return None
    return _pause_decoder.decode(body).pos


class ForwardedHere:
    """Answer what other workers ask."""

    def __init__(self, *, forwarding: Forwarding, perform: Perform, begin_pause: BeginPause) -> None:
        self._forwarding = forwarding
        self._perform = perform
        self._begin_pause = begin_pause
        self.answered = 0

    async def answer(self, body: bytes) -> bytes:
        """Do what a call asks. Raises whatever the request does not turn into an answer."""
        question = _question_decoder.decode(body)
        if isinstance(question, PauseRequest):
            return _encoder.encode(Pause(await self._pause(question.room_id)))
        answer = await self._perform(question)
        self.answered += 1
        return _encoder.encode(answer)

    async def _pause(self, room_id: str) -> int | None:
        # Else two that ask each other would wait for each other.
        return 0 if self._forwarding.defers(room_id) else await self._begin_pause(room_id)
