"""What a process tells Prometheus of its log, its memory and its database, beside its requests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import ranvier
from ranvier.processes.core import Core
from ranvier.sync.notifier import Notifier
from ranvier.wire.log_rows import Batch

_BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_BUCKET_NAMES = [*map(str, map(float, _BATCH_SIZES)), "+Inf"]


class ProcessGauges(Collector):
    """Read the parts of a process whenever Prometheus asks; only commits are counted as they come."""

    def __init__(self, name: str, core: Core, notifier: Notifier) -> None:
        self._name = name
        self._core = core
        self._notifier = notifier
        self._batches = [0] * len(_BUCKET_NAMES)
        self._rows = 0
        core.bus.listen(batches=self._on_batch)

    def collect(self) -> Iterator[Metric]:
        """Give everything as it is now."""
        yield InfoMetricFamily("ranvier_build", "What runs.", value={"version": ranvier.__version__})
        yield InfoMetricFamily("ranvier_worker", "Whose figures these are.", value={"name": self._name})
        yield from self._log()
        yield from self._memory()
        yield from self._database()

    def _log(self) -> Iterator[Metric]:
        follower, tail = self._core.follower, self._core.tail
        yield GaugeMetricFamily("ranvier_log_position", "The newest row that this process knows.", tail.pos)
        yield GaugeMetricFamily(
            "ranvier_log_behind_rows",
            "Rows known to be committed and not here yet.",
            follower.behind,
        )
        counts = list(zip(_BUCKET_NAMES, accumulate(map(float, self._batches)), strict=True))
        sizes = HistogramMetricFamily("ranvier_log_batch_rows", "Rows of each commit that the bus brought.")
        sizes.add_metric([], counts, self._rows)
        yield sizes
        yield CounterMetricFamily(
            "ranvier_log_commits", "Commits that the bus brought.", value=sum(self._batches)
        )
        yield GaugeMetricFamily(
            "ranvier_log_queued_writes", "Writes that wait for the next commit.", self._core.appender.queued
        )
        yield CounterMetricFamily(
            "ranvier_log_overtaken_writes",
            "Writes to a room that were computed again, as another process wrote there first.",
            value=self._core.appender.overtaken,
        )

    def _memory(self) -> Iterator[Metric]:
        tail, rooms = self._core.tail, self._core.rooms
        yield GaugeMetricFamily("ranvier_tail_rows", "Rows of the log in memory.", len(tail))
        yield GaugeMetricFamily("ranvier_tail_bytes", "Their size.", tail.size_bytes)
        yield GaugeMetricFamily("ranvier_rooms_held", "Rooms in memory.", rooms.rooms_held)
        yield GaugeMetricFamily("ranvier_rooms_state_held", "Their state events.", rooms.state_held)
        yield GaugeMetricFamily(
            "ranvier_sync_waiting", "Requests that wait for something to tell.", self._notifier.waiting
        )

    def _database(self) -> Iterator[Metric]:
        database = self._core.database
        connections = GaugeMetricFamily(
            "ranvier_database_connections", "Connections to PostgreSQL.", labels=["state"]
        )
        connections.add_metric(["used"], database.used)
        connections.add_metric(["idle"], database.idle)
        yield connections
        yield GaugeMetricFamily(
            "ranvier_database_reachable", "1, or 0 since PostgreSQL did not answer.", int(database.reachable)
        )

    def _on_batch(self, batch: Batch) -> None:
        size = len(batch.rows)
        self._rows += size
        self._batches[bisect_left(_BATCH_SIZES, size)] += 1
