"""The memory that the workers of a machine share: how far the log is, and whose turn it is to commit."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from ranvier.cluster import head_board
from ranvier.cluster.head_board import HeadBoard


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each board a place of its own: by their locks, those of one process would share one."""
    places = itertools.count()
    monkeypatch.setattr(HeadBoard, "_take_place", lambda _: next(places))


class Clock:
    """A clock that goes on by a nanosecond each time it is asked, and further when a test says so."""

    def __init__(self) -> None:
        self.ns = 10**18

    def read(self) -> int:
        self.ns += 1
        return self.ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that all boards go by."""
    made = Clock()
    monkeypatch.setattr(head_board, "time", SimpleNamespace(monotonic_ns=made.read))
    return made


def test_everybody_sees_the_newest_head(tmp_path: Path) -> None:
    """One would not see through one worker what another has answered."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    one.note(7)
    other.note(5)
    assert one.newest() == other.newest() == 7
    one.close()
    other.close()


async def test_who_starts_takes_nothing_back_but_what_is_of_another_database(tmp_path: Path) -> None:
    """Who sent a message through a worker that is killed would be shown the room without it by another one.

    And with a database from a copy, workers would wait for commits that it does not have.
    """
    dead, starting, third = HeadBoard(tmp_path), HeadBoard(tmp_path), HeadBoard(tmp_path)

    async def read_head() -> int:
        return 101

    dead.note(101)  # since ``starting`` has read the log, as far as 100
    await starting.begin(100, read_head)
    assert third.newest() == 101
    dead.note(1_000)
    await third.begin(101, read_head)
    assert third.newest() == 101
    for board in (dead, starting, third):
        board.close()


def test_they_commit_in_turn(tmp_path: Path, clock: Clock) -> None:
    """Under load each message would cost a commit of its own, or one worker's would wait for ever."""
    one, other, third = HeadBoard(tmp_path), HeadBoard(tmp_path), HeadBoard(tmp_path)
    assert one.may_commit()
    one.begin_commit()
    assert not other.may_commit()
    assert not third.may_commit()
    one.end_commit()
    assert not third.may_commit(), "who came first goes first"
    assert not one.may_commit()
    assert other.may_commit()
    other.begin_commit()
    other.end_commit()
    assert third.may_commit()
    for board in (one, other, third):
        board.close()


def test_nobody_waits_for_the_dead(tmp_path: Path, clock: Clock) -> None:
    """A worker that was killed or frozen in a commit would hold up all others."""
    one, other, third = HeadBoard(tmp_path), HeadBoard(tmp_path), HeadBoard(tmp_path)
    one.begin_commit()
    assert not other.may_commit()
    assert not third.may_commit()
    clock.ns += head_board._STALE_NS
    assert third.may_commit()
    for board in (one, other, third):
        board.close()


def test_a_worker_at_which_somebody_waits_is_known_to_all_others(tmp_path: Path, clock: Clock) -> None:
    """Who waits at another worker than who writes would get messages late; or all would be woken in vain."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    assert not one.is_attended()
    assert one.attend(), "it is news"
    assert not one.is_attended(), "its own attention is no reason to tell others"
    assert other.is_attended()
    clock.ns += head_board._ATTENDS_NS // 2
    assert not one.attend(), "others know"
    clock.ns += head_board._ATTENDS_NS // 2
    assert other.is_attended(), "it was said anew"
    clock.ns += head_board._ATTENDS_NS
    assert not other.is_attended(), "nobody has waited there for long"
    assert one.attend()
    one.close()
    assert not other.is_attended()
    other.close()


def test_attention_that_is_about_to_end_is_told_anew(tmp_path: Path, clock: Clock) -> None:
    """One that writes could take it for over in between, hold a message back and not be asked for it."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    one.attend()
    clock.ns += head_board._ATTENDS_NS - head_board._NEARLY_OVER_NS // 2
    assert other.is_attended()
    assert one.attend()
    one.close()
    other.close()


def test_attention_is_no_place_in_the_line(tmp_path: Path, clock: Clock) -> None:
    """Each commit of a server at which somebody waits would stand in line for nothing."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    one.attend()
    other.begin_commit()
    assert not one.may_commit()
    other.end_commit()
    assert one.may_commit()
    for board in (one, other):
        board.close()
