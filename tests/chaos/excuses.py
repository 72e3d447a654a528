"""Which requests may fail with a fault: those that were in flight on its victim, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

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


@dataclass(frozen=True)
class Excuse:
    """Say which requests may have failed, and how long the slowest message may have taken.

    Excused are those that were cut off on a connection that a victim held (the clients' ``ports``; ``pids``
    of those with sockets of their own), begun before ``until``, when it was gone; of a victim that ended in
    order ``at_most`` so many: those on their way, on a connection that was kept alive, when it was closed
    (RFC 9112, section 9.3.1: clients repeat those by themselves). Then answers of 503 to what is
    ``unavailable`` and was begun before ``unavailable_until``: what needs PostgreSQL while that is away, and
    state, which has no transaction id, that a victim was to set. Nobody may be left without an answer.
    """

    pids: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()
    until: float = 0.0
    at_most: int | None = None
    unavailable: frozenset[str] = frozenset()
    unavailable_until: float = 0.0
    slowest_s: float = AT_ONCE_S

    def stray(self, failures: Sequence[Failure]) -> list[Failure]:
        """Give those that it does not excuse."""
        cut = [it for it in failures if it.how is How.CUT and self._is_victims(it)]
        if self.at_most is not None:
            cut = [it for it in cut if it.ended - it.began < _TRANSIT_S]
        excused = {id(it) for it in cut[: self.at_most]}
        return [it for it in failures if id(it) not in excused and not self._is_unavailable(it)]

    def _is_unavailable(self, failure: Failure) -> bool:
        kind = failure.what.partition(" ")[0]
        late = failure.began < self.unavailable_until
        return failure.how is How.UNAVAILABLE and kind in self.unavailable and late

    def _is_victims(self, failure: Failure) -> bool:
        held = failure.way.pid in self.pids or failure.way.port in self.ports
        return held and failure.began < self.until


NO_EXCUSE: Final = Excuse()


def one_of(excuses: Sequence[Excuse]) -> Excuse:
    """Give the excuse for what befell several victims, one after the other, each ended in order."""
    return Excuse(
        pids=frozenset().union(*(it.pids for it in excuses)),
        ports=frozenset().union(*(it.ports for it in excuses)),
        until=max(it.until for it in excuses),
        at_most=sum(it.at_most or 0 for it in excuses),
    )
