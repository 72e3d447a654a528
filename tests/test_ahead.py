"""A client that was told more by another worker than this one has followed."""

from __future__ import annotations

import asyncio

import pytest

from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError
from ranvier.storage.database import DatabaseUnavailable
from ranvier.sync.ahead import Ahead

HEAD = 100


async def head() -> int:
    return HEAD


async def away() -> int:
    raise DatabaseUnavailable


@pytest.fixture
def tail(monkeypatch: pytest.MonkeyPatch) -> Tail:
    """Give the tail of a worker that has come to 99 of 100."""
    monkeypatch.setattr("ranvier.sync.ahead.WAIT_S", 0.05)
    tail = Tail()
    tail.reset(HEAD - 1)
    return tail


async def test_a_worker_that_stays_behind_gives_no_older_token(tail: Tail) -> None:
    """A client would be sent back in time and be told of messages a second time."""
    for asked in (head, away):
        with pytest.raises(MatrixError) as refused:
            await Ahead(tail=tail, head=asked).reach(HEAD)
        assert refused.value.status == 503


async def test_who_is_ahead_for_a_moment_is_answered(tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that hop between workers would be refused again and again."""
    monkeypatch.setattr("ranvier.sync.ahead.WAIT_S", 10)
    reaching = asyncio.create_task(Ahead(tail=tail, head=away).reach(HEAD))
    await asyncio.sleep(0)
    tail.apply([], HEAD)
    await reaching


async def test_a_token_of_before_a_backup_was_put_back_is_taken(tail: Tail) -> None:
    """After a backup was put back nobody would hear of anything until the log is as long as it was."""
    await Ahead(tail=tail, head=head).reach(HEAD + 1)
