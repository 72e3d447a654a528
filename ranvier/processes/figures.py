"""What a process counts of itself each second, for the page at ``/_ranvier/`` and ``ranvier status``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from ranvier.http.loop_lag import LoopLag
from ranvier.log.beats import until_beat_s
from ranvier.processes.core import Core
from ranvier.sync.notifier import Notifier
from ranvier.wire.figures import Figures
from ranvier.wire.log_rows import EventRow, Row

PERIOD_S: Final = 1.0


class _Count:
    """A number that only grows, read once a second."""

    def __init__(self) -> None:
        self._before = 0.0

    def grown(self, now: float) -> float:
        growth, self._before = now - self._before, now
        return growth


class ProcessFigures:
    """Keep the figures of the last second. ``run`` must be running in a task.

    ``cpu`` is the share of one core that the process used in that second.
    """

    def __init__(
        self, core: Core, notifier: Notifier, loop_lag: LoopLag, requests: Callable[[], tuple[int, int, int]]
    ) -> None:
        """Count what these do.

        ``requests`` gives how many were answered, how many of those for other workers, and how many are in
        flight.
        """
        self._core = core
        self._requests_now = requests
        self._notifier = notifier
        self._loop_lag = loop_lag
        self._own_events = ":" + core.identity.server_name
        self._ages_ms = 0.0
        self._aged = 0
        self._rows, self._requests, self._forwarded = _Count(), _Count(), _Count()
        self._commits, self._commit_s = _Count(), _Count()
        self._rows.grown(core.tail.pos)
        self.now = Figures()
        self.cpu = 0.0
        self._cpu_s = time.process_time()
        core.tail.listen(self._on_rows)

    async def run(self, counted: Callable[[], None]) -> None:
        """Count once a second and call ``counted``, for ever."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(until_beat_s(PERIOD_S))
            now = time.monotonic()
            self._count(now - since)
            counted()
            since = now

    def _count(self, seconds: float) -> None:
        core = self._core
        cpu_s = time.process_time()
        self.cpu, self._cpu_s = round((cpu_s - self._cpu_s) / seconds, 3), cpu_s
        answered, forwarded, in_flight = self._requests_now()
        waiting = self._notifier.waiting
        commits = self._commits.grown(core.appender.commits)
        commit_s = self._commit_s.grown(core.appender.commit_s)
        self.now = Figures(
            behind_rows=core.follower.behind,
            loop_lag_ms=round(self._loop_lag.take_worst_s() * 1000, 1),
            requests_per_s=round(self._requests.grown(answered) / seconds, 1),
            forwarded_per_s=round(self._forwarded.grown(forwarded) / seconds, 1),
            in_flight=in_flight,
            rows_per_s=round(self._rows.grown(core.tail.pos) / seconds, 1),
            commits_per_s=round(commits / seconds, 1),
            commit_ms=round(commit_s * 1000 / commits, 2) if commits else 0.0,
            # While nobody waits here, messages are taken a few times a second only.
            delivery_ms=round(self._ages_ms / self._aged, 2) if self._aged and waiting else 0.0,
            queued_writes=core.appender.queued,
            rooms_held=core.rooms.rooms_held,
            sync_waiting=waiting,
            database_used=core.database.used,
            database_idle=core.database.idle,
            database_reachable=core.database.reachable,
        )
        self._ages_ms, self._aged = 0.0, 0

    def _on_rows(self, rows: Sequence[Row]) -> None:
        # One of each piece is enough, and what other servers sent says nothing of this one's log.
        newest = rows[-1] if rows else None
        if isinstance(newest, EventRow) and newest.sender.endswith(self._own_events):
            self._ages_ms += max(0, self._core.clock.now_ms() - newest.origin_server_ts)
            self._aged += 1
