"""How late the event loop comes to what is due: while one piece of work runs, everybody else waits."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ranvier.log.beats import until_beat_s

PERIOD_S: Final = 0.5
"""Seconds between looks: a stall that is shorter is seen by chance, and seldom looks cost nothing."""
_LATE_S: Final = 0.005
_BUCKETS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
_BUCKET_NAMES: Final = [*map(str, _BUCKETS_S), "+Inf"]


class _Histogram:
    __slots__ = ("counts", "help", "name", "total_s")

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self.counts = [0] * len(_BUCKET_NAMES)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def metric(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help)
        counts = zip(_BUCKET_NAMES, accumulate(map(float, self.counts)), strict=True)
        family.add_metric([], list(counts), self.total_s)
        return family


class LoopLag(Collector):
    """Look at the clock every ``period_s`` seconds, and count how much later than asked for that was.

    Of each look that came late the CPU time of the loop's thread since the look before is counted, too: where
    it is far less than the lag, the machine and not this process kept everybody waiting. A look costs a few
    microseconds.
    """

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._lag = _Histogram(
            "ranvier_event_loop_lag_seconds", "How late the event loop came to a timer that was due."
        )
        self._busy = _Histogram(
            "ranvier_event_loop_busy_seconds",
            "CPU time of the event loop's thread between two looks, the later of which came late.",
        )

        self._worst_s = 0.0
        self._due_s = self._cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def take_worst_s(self) -> float:
        """Give the worst lag since this was asked last, in seconds."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    async def run(self) -> None:
        """Measure for as long as this runs."""
        self._look_later()
        try:
            await asyncio.Event().wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look_later(self) -> None:
        # Not together with what is done each second, or it would measure that each time.
        wait_s = until_beat_s(self._period_s, shift=0.5)
        self._due_s, self._cpu_s = time.monotonic() + wait_s, time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        late_s = time.monotonic() - self._due_s
        self._lag.add(max(late_s, 0.0))
        self._worst_s = max(self._worst_s, late_s)
        if late_s > _LATE_S:
            self._busy.add(time.thread_time() - self._cpu_s)
        self._look_later()

    def collect(self) -> Iterator[Metric]:
        """Give both histograms to Prometheus."""
        yield self._lag.metric()
        yield self._busy.metric()
