"""Measurements: latencies as percentiles, CPU per operation, rate, and how quiet the machine was."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from bench.proc import ProcessTree, machine_busy_ms, own_cpu_ms

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """What one scenario cost one server; times in ms.

    `others_percent` is the share of the machine's CPU that neither the server nor the driver used: above some
    percent, latencies and rates are those of a busy machine. `turns_ms` is the CPU per operation of each time
    that it was measured.
    """

    name: str
    operations: int
    seconds: float
    rate: float
    cpu_ms: float
    server_cpu_ms: float
    postgres_cpu_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    driver_percent: float
    others_percent: float
    turns_ms: Sequence[float] = ()


@dataclass
class Recording:
    """Latencies gathered while a scenario runs."""

    latencies_ms: list[float] = field(default_factory=list)

    async def time(self, operation: Awaitable[T]) -> T:
        """Await an operation and keep how long it took."""
        begun = perf_counter()
        result = await operation
        self.latencies_ms.append((perf_counter() - begun) * 1000)
        return result


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


@dataclass
class _Total:
    """What all measurements of one name came to; CPU in ms."""

    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    counted_s: float = 0.0
    server_ms: float = 0.0
    postgres_ms: float = 0.0
    driver_ms: float = 0.0
    others_ms: float = 0.0
    turns_ms: list[float] = field(default_factory=list)

    def measurement(self, name: str) -> Measurement:
        operations, latencies = len(self.latencies_ms), self.latencies_ms
        machine_ms = self.counted_s * 1000 * (os.cpu_count() or 1)
        return Measurement(
            name=name,
            operations=operations,
            seconds=self.seconds,
            rate=operations / self.seconds,
            cpu_ms=(self.server_ms + self.postgres_ms) / operations,
            server_cpu_ms=self.server_ms / operations,
            postgres_cpu_ms=self.postgres_ms / operations,
            p50_ms=percentile(latencies, 50),
            p95_ms=percentile(latencies, 95),
            p99_ms=percentile(latencies, 99),
            driver_percent=100 * self.driver_ms / machine_ms,
            others_percent=max(0.0, 100 * self.others_ms / machine_ms),
            turns_ms=tuple(self.turns_ms),
        )


class Meter:
    """Measures scenarios on one server's process tree.

    `put_off_s` is for how long a server may put off what it has to do: the CPU that it uses in this time
    after a scenario counts as well.
    """

    def __init__(self, tree: ProcessTree, put_off_s: float = 0.0) -> None:
        self.tree = tree
        self._put_off_s = put_off_s
        self.measurements: dict[str, Measurement] = {}
        self._totals: dict[str, _Total] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[Recording]:
        """Measure what happens inside the `with` block; each recorded latency is one operation.

        What was measured under the same name before counts as well.
        """
        recording = Recording()
        cpu, busy, own, begun = self.tree.cpu(), machine_busy_ms(), own_cpu_ms(), perf_counter()
        yield recording
        seconds = perf_counter() - begun
        time.sleep(self._put_off_s)
        used, own_used = self.tree.cpu() - cpu, own_cpu_ms() - own
        total = self._totals.setdefault(name, _Total())
        total.latencies_ms += recording.latencies_ms
        total.seconds += seconds
        total.counted_s += seconds + self._put_off_s
        total.server_ms += used.server_ms
        total.postgres_ms += used.postgres_ms
        total.driver_ms += own_used
        total.others_ms += machine_busy_ms() - busy - used.total_ms - own_used
        total.turns_ms.append(used.total_ms / max(1, len(recording.latencies_ms)))
        self.measurements[name] = total.measurement(name)
