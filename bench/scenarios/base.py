"""What a scenario is given, and how long it lasts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from bench.client import Client
from bench.measure import Measurement, Meter
from bench.world import World


@dataclass(frozen=True)
class Pace:
    """How much is measured: `seconds` scales each scenario's time, `counts` its least operations."""

    seconds: float = 1.0
    counts: float = 1.0

    def budget(self, at_least: int, seconds: float, at_most: int = 1_000_000) -> Iterator[int]:
        """Count operations: `at_least` of them, then more until `seconds` are over or there are `at_most`."""
        end = perf_counter() + seconds * self.seconds
        least = max(1, round(at_least * self.counts))
        for number in range(at_most):
            if number >= least and perf_counter() >= end:
                return
            yield number


@dataclass(frozen=True)
class Bench:
    """The world of one server, what measures it, and the pace; each of its workers meets one of `waiters`."""

    world: World
    meter: Meter
    pace: Pace
    waiters: Sequence[Client] = ()

    @property
    def measurements(self) -> dict[str, Measurement]:
        return self.meter.measurements


@dataclass(frozen=True)
class Scenario:
    """One scenario. Those that build the world run always; the others only when asked for."""

    name: str
    title: str
    run: Callable[[Bench], Awaitable[None]]
    builds_world: bool = False
