"""What a process counts of itself, for the page and for ``ranvier status``."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from ranvier.log.clock import SystemClock
from ranvier.processes.figures import ProcessFigures
from ranvier.wire.log_rows import Batch
from tests.core import SERVER_NAME, running_core

ALICE = "@alice:example.org"


async def test_each_figure_says_what_is(database: str) -> None:
    """An administrator would read that a worker has nothing to do which is far behind, or has too much."""
    async with running_core(database) as core:
        room_id = await core.create_room()
        parts = {name: getattr(core, name) for name in ("database", "tail", "follower", "appender", "rooms")}
        later = SimpleNamespace(now_ms=lambda: SystemClock().now_ms() + 500)
        whole = SimpleNamespace(**parts, clock=later, identity=SimpleNamespace(server_name=SERVER_NAME))
        figures = ProcessFigures(
            cast(Any, whole),
            cast(Any, SimpleNamespace(waiting=7)),
            cast(Any, SimpleNamespace(take_worst_s=lambda: 0.0123)),
            partial(next, iter([(10, 2, 3), (20, 6, 3)])),
        )
        figures._count(1.0)
        for number in range(4):
            await core.send(room_id, ALICE, str(number))
        core.follower._on_batch(Batch(core.tail.pos + 4, core.tail.pos + 5, []))
        figures._count(2.0)
        now = figures.now
        assert now.behind_rows == 5
        assert (now.rows_per_s, now.commits_per_s) == (2.0, 2.0)
        assert now.commit_ms > 0
        assert now.delivery_ms >= 500
        assert (now.requests_per_s, now.forwarded_per_s) == (5.0, 2.0)
        assert (now.in_flight, now.sync_waiting) == (3, 7)
        assert (now.loop_lag_ms, now.rooms_held, now.database_reachable) == (12.3, 1, True)
        assert now.database_used + now.database_idle > 0
        assert figures.cpu > 0
