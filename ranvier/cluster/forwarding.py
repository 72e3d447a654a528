"""Pass a request on to the worker that has its room, or say that it is better done here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec

from ranvier.cluster.frames import UNREADABLE
from ranvier.cluster.link import HASTE_S, NotAcceptedError, Outcome, Told
from ranvier.cluster.links import Links
from ranvier.cluster.placement import Placement
from ranvier.wire.forwarded import ForwardedAnswer, ForwardedRequest

logger = logging.getLogger(__name__)

_ACCEPT_WITHIN_S: Final = 0.25
_CONFIRMED_WITHIN_S: Final = 0.75 * HASTE_S

Perform = Callable[[ForwardedRequest], Awaitable[ForwardedAnswer]]

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(ForwardedRequest)
_answer_decoder = msgspec.msgpack.Decoder(ForwardedAnswer)


class Forwarding:
    """Ask the worker that a room (or another key) is placed on.

    Whoever has a room writes it without being overtaken; that is all that forwarding is for, so whatever
    stands in its way makes the work be done here.
    """

    def __init__(self, *, placement: Placement, links: Links, own_name: str) -> None:
        self._placement = placement
        self._links = links
        self._own_name = own_name

    def target(self, kind: str, key: str) -> str | None:
        """Give the name of the other worker that has a key; None if this one has it, or no link to it."""
        name = self._placement.place(kind, key).name
        if name == self._own_name:
            return None
        return None if self._links.find(name) is None else name

    async def ask(
        self, name: str, request: ForwardedRequest, *, repeatable: bool = False
    ) -> ForwardedAnswer | None:
        """Have another worker answer a request; None if it did not begin, so that it is to be done here.

        One that is not ``repeatable`` does harm if it is done twice, and is confirmed before it is begun.
        This worker may not have followed the log that far yet; whoever asks it next waits for that (see
        ``cluster.currency``). Raises LinkLostError when the other went away and nobody knows how far it came.
        """
        link = self._links.find(name)
        if link is None:
            return None
        try:
            outcome: Outcome = await link.call(
                _encoder.encode(request), accept_within_s=_accept_within_s(repeatable=repeatable)
            )
        except NotAcceptedError as error:
            outcome = error
        return self.read(outcome)

    def begin(
        self, name: str, request: ForwardedRequest, told: Told, *, repeatable: bool
    ) -> Callable[[], None] | None:
        """Do the same without a task: ``told`` is called with what ``read`` takes; it must not raise.

        Give what ends the wait; None if no link is open, and then ``told`` is not called.
        """
        link = self._links.find(name)
        if link is None:
            return None
        within_s = _accept_within_s(repeatable=repeatable)
        id = link.begin(_encoder.encode(request), told, accept_within_s=within_s)
        return partial(link.forget, id)

    def read(self, outcome: Outcome) -> ForwardedAnswer | None:
        """Give an answer; None if nothing was begun. Raises LinkLostError, UNREADABLE for what is none."""
        if isinstance(outcome, bytes):
            return _answer_decoder.decode(outcome)
        if isinstance(outcome, NotAcceptedError):
            return None
        raise outcome


def _accept_within_s(*, repeatable: bool) -> float:
    return _ACCEPT_WITHIN_S if repeatable else _CONFIRMED_WITHIN_S


class ForwardedHere:
    """Answer what other workers pass on."""

    def __init__(self, *, perform: Perform) -> None:
        self._perform = perform
        self.unreadable = 0

    async def answer(self, body: bytes) -> bytes:
        """Do what a call asks. Raises NotAcceptedError for what another version writes in another way."""
        try:
            request = _request_decoder.decode(body)
        except UNREADABLE as error:
            # Once: a worker of another version may pass on a thousand a second.
            level = logging.DEBUG if self.unreadable else logging.WARNING
            logger.log(level, "A request that was passed on is unreadable, its sender does it: %s", error)
            self.unreadable += 1
            raise NotAcceptedError from None
        return _encoder.encode(await self._perform(request))
