"""Which requests may fail or be slow with a fault: those that were in flight on its victim, and no others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ranvier.cluster.members import LEASE_S
from tests.chaos.clients import Way

AT_ONCE_S: Final = 5.0
"""How long a message may take, with its repetitions, when nothing stands still (but the machine is busy)."""


_TRANSIT_S: Final = 1.0


class How(Enum):
    """How a request failed."""

    CUT = "cut off"
    UNAVAILABLE = "answered 503"
    HUNG = "not answered"


@dataclass(frozen=True)
class Failure:
    """A request that a client had to repeat: when it was begun (monotonic seconds), on which connection."""

    what: str
    began: float
    ended: float
    how: How
    error: str
    way: Way


@dataclass
class Message:
    """What somebody said: when it was begun and answered (monotonic seconds), on which connections."""

    text: str
    began: float
    ended: float = math.inf
    ways: list[Way] = field(default_factory=list)

    @property
    def took_s(self) -> float:
        """How long it took, with its repetitions."""
        return self.ended - self.began


@dataclass(frozen=True)
class Excuse:
    """Say which requests may have failed, and how long each message may have taken.

    Excused are those that were cut off on a connection that a victim held (the clients' ``ports``; ``pids``
    of those with sockets of their own), begun before ``until``, when it was gone; of a victim that ended in
    order ``at_most`` so many: those on their way, on a connection that was kept alive, when it was closed
    (RFC 9112, section 9.3.1: clients repeat those by themselves). Then answers of 503 to what is
    ``unavailable`` and was begun before ``unavailable_until``: what needs PostgreSQL while that is away; and
    to state, which has no transaction id, that a victim had in hand: it was under way, wherever, when the
    victim was ``stopped``, or was sent to the victim before that ``resumed``. Nobody may be left without an
    answer.

    A message may take ``slowest_s``; if it was under way when the victim was stopped, ``in_hand_s`` from then
    on; ``meanwhile_s`` if it was begun elsewhere while the victim's lease ran on, and ``victims_s`` if it was
    sent to the victim before that went on.
    """

    pids: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()
    until: float = 0.0
    at_most: int | None = None
    unavailable: frozenset[str] = frozenset()
    unavailable_until: float = 0.0
    stopped: float = math.inf
    resumed: float = 0.0
    slowest_s: float = AT_ONCE_S
    in_hand_s: float = AT_ONCE_S
    meanwhile_s: float = AT_ONCE_S
    victims_s: float = AT_ONCE_S

    def stray(self, failures: Sequence[Failure]) -> list[Failure]:
        """Give those that it does not excuse."""
        cut = [it for it in failures if it.how is How.CUT and self._is_victims(it)]
        if self.at_most is not None:
            cut = [it for it in cut if it.ended - it.began < _TRANSIT_S]
        excused = {id(it) for it in cut[: self.at_most]}
        return [it for it in failures if id(it) not in excused and not self._is_unavailable(it)]

    def late(self, messages: Sequence[Message]) -> list[Message]:
        """Give those that took longer than it allows."""
        return [it for it in messages if it.ended > self._until(it)]

    def _until(self, message: Message) -> float:
        if self._waited(message.began, message.ways):
            return message.began + self.victims_s
        if message.began < self.stopped < message.ended:
            return self.stopped + self.in_hand_s
        at_once = 0 < message.began - self.stopped < LEASE_S
        return message.began + (self.meanwhile_s if at_once else self.slowest_s)

    def _is_unavailable(self, failure: Failure) -> bool:
        kind = failure.what.partition(" ")[0]
        away = kind in self.unavailable and failure.began < self.unavailable_until
        in_hand = failure.began < self.stopped < failure.ended or self._waited(failure.began, [failure.way])
        return failure.how is How.UNAVAILABLE and (away or (kind == "state" and in_hand))

    def _is_victims(self, failure: Failure) -> bool:
        return self._held(failure.way) and failure.began < self.until

    def _waited(self, began: float, ways: Sequence[Way]) -> bool:
        """Tell whether somebody asked a victim that stood still, and went on."""
        return began < self.resumed and any(map(self._held, ways))

    def _held(self, way: Way) -> bool:
        return way.pid in self.pids or way.port in self.ports


NO_EXCUSE: Final = Excuse()


def one_of(excuses: Sequence[Excuse]) -> Excuse:
    """Give the excuse for what befell several victims, one after the other, each ended in order."""
    return Excuse(
        pids=frozenset().union(*(it.pids for it in excuses)),
        ports=frozenset().union(*(it.ports for it in excuses)),
        until=max(it.until for it in excuses),
        at_most=sum(it.at_most or 0 for it in excuses),
    )
