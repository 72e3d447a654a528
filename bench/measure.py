"""Measurements: latencies as percentiles, CPU per operation, rate, and how quiet the machine was."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Iterator
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
    percent, latencies and rates are those of a busy machine.
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


class Meter:
    """Measures scenarios on one server's process tree."""

    def __init__(self, tree: ProcessTree) -> None:
        self.tree = tree
        self.measurements: dict[str, Measurement] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[Recording]:
        """Measure what happens inside the `with` block; each recorded latency is one operation."""
        recording = Recording()
        cpu, busy, own, begun = self.tree.cpu(), machine_busy_ms(), own_cpu_ms(), perf_counter()
        yield recording
        seconds = perf_counter() - begun
        used, own_used = self.tree.cpu() - cpu, own_cpu_ms() - own
        others = machine_busy_ms() - busy - used.total_ms - own_used
        operations, latencies = len(recording.latencies_ms), recording.latencies_ms
        machine_ms = seconds * 1000 * (os.cpu_count() or 1)
        self.measurements[name] = Measurement(
            name=name,
            operations=operations,
            seconds=seconds,
            rate=operations / seconds,
            cpu_ms=used.total_ms / operations,
            server_cpu_ms=used.server_ms / operations,
            postgres_cpu_ms=used.postgres_ms / operations,
            p50_ms=percentile(latencies, 50),
            p95_ms=percentile(latencies, 95),
            p99_ms=percentile(latencies, 99),
            driver_percent=100 * own_used / machine_ms,
            others_percent=max(0.0, 100 * others / machine_ms),
        )
