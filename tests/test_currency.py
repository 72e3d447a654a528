"""Workers of one machine: what one has shown, no other may be behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ranvier.cluster.currency import Currency
from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.members import Members
from ranvier.log.follow import Follower
from ranvier.spec.errors import MatrixError
from ranvier.storage import log as storage
from ranvier.storage.database import DatabaseUnavailable
from ranvier.wire.log_rows import LogRow
from tests.core import Core, running_core


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each board a place of its own: by their locks, those of one process would share one."""
    places = itertools.count()
    monkeypatch.setattr(HeadBoard, "_take_place", lambda _: next(places))
    # Nobody reads the log before it is told to.
    monkeypatch.setattr("ranvier.log.follow._POLL_S", 60.0)
    monkeypatch.setattr("ranvier.cluster.currency._LIMIT_S", 0.05)
    monkeypatch.setattr("ranvier.cluster.currency._LONGEST_S", 0.2)


class Worker:
    """A core with what it knows of the other workers of its machine."""

    def __init__(self, core: Core, board: HeadBoard) -> None:
        own = SimpleNamespace(heads="here")
        members = SimpleNamespace(own=own, others=list, knows_all=True, listen=lambda told: None)
        self.core = core
        self.board = board
        self.currency = Currency(
            board=board,
            members=cast(Members, members),
            tail=core.tail,
            database=core.database,
            hurry=core.follower.hurry,
        )


@asynccontextmanager
async def worker(dsn: str, folder: Path) -> AsyncIterator[Worker]:
    """Run a worker."""
    board = HeadBoard(folder)
    async with running_core(dsn, committed=board.note) as core:
        await board.begin(core.tail.pos, partial(storage.head, core.database))
        yield Worker(core, board)
    board.close()


async def committed(core: Core) -> int:
    """Commit something of which nobody is told, as a worker does that dies then."""
    row = LogRow(kind="device_list", user_id="@alice:example.org", key="a", body=b"{}")
    async with core.database.connection() as connection:
        await storage.append(connection, [], [row], 0)
    return await storage.head(core.database)


async def test_what_one_worker_finds_in_the_log_no_other_is_behind(database: str, tmp_path: Path) -> None:
    """Somebody would be shown the last words of a worker that died, and then a room without them."""
    async with worker(database, tmp_path) as one, worker(database, tmp_path) as other:
        pos = await committed(one.core)
        assert other.currency.is_current()
        one.core.follower.hurry()
        assert await one.core.tail.wait_for(pos, 10)
        assert not other.currency.is_current()
        behind = other.currency.catch_up()
        assert behind is not None
        await behind
        assert other.core.tail.pos == pos


async def test_older_rows_take_nothing_back(tmp_path: Path) -> None:
    """A worker that reads what it missed would hide from others what it has committed since."""
    board = HeadBoard(tmp_path)
    board.note(9)
    board.note(7)
    assert board.newest() == 9
    board.close()


async def test_a_worker_that_is_far_behind_says_so(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it stood still, a worker would show rooms as they were a minute ago, as if that were now."""
    reads = asyncio.Event()
    read_upto = Follower._read_upto

    async def read_late(self: Follower, head: int) -> None:
        await reads.wait()
        await read_upto(self, head)

    async with worker(database, tmp_path) as one, worker(database, tmp_path) as late:
        monkeypatch.setattr(Follower, "_read_upto", read_late)
        pos = await committed(one.core)
        one.board.note(pos)
        behind = late.currency.catch_up()
        assert behind is not None
        with pytest.raises(MatrixError) as refused:
            await behind
        assert refused.value.status == 503
        reads.set()
        assert await late.core.tail.wait_for(pos, 10)
        assert late.currency.is_current()


@pytest.mark.parametrize("away", [True, False])
async def test_what_can_not_be_reached_holds_nobody_up(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """Nothing could be read while PostgreSQL is away; or never, in a folder that was another database's."""
    async with worker(database, tmp_path) as one:
        one.board.note(one.core.tail.pos + 1)

        async def fail(*_: Any) -> int:
            raise DatabaseUnavailable

        if away:
            monkeypatch.setattr(storage, "head", fail)
        behind = one.currency.catch_up()
        assert behind is not None
        await behind
