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


def test_nothing_is_held_back_while_somebody_waits_at_another_worker(tmp_path: Path, clock: Clock) -> None:
    """Who waits at another worker than who writes would get messages late; or all would be woken in vain."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    other.attend()
    assert other.hold(), "its own attention is no reason to tell others"
    assert not one.hold()
    clock.ns += head_board._ATTENDS_NS // 2
    other.attend()
    clock.ns += head_board._ATTENDS_NS // 2
    assert not one.hold(), "it was said anew"
    clock.ns += head_board._ATTENDS_NS
    assert one.hold(), "nobody has waited there for long"
    other.attend()
    assert not one.hold()
    other.close()
    assert one.hold()
    one.close()


def test_who_begins_to_wait_knows_whether_something_is_held_back(tmp_path: Path, clock: Clock) -> None:
    """What they wait for would come late; or each one who asks something would wake all workers in vain."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    assert one.hold()
    assert not one.attend(), "what it holds itself it knows"
    assert other.attend()
    assert not other.attend(), "the other one knows"
    one.release()
    clock.ns += head_board._ATTENDS_NS
    assert not other.attend()
    clock.ns += head_board._ATTENDS_NS - head_board._NEARLY_OVER_NS // 2
    assert not one.hold()
    one._places[head_board._HOLDS + one._own] = clock.ns + 1_000
    assert other.attend(), "another one may have taken it for over in between"
    clock.ns += 2 * head_board._ATTENDS_NS
    assert not other.attend(), "who was killed holds nothing back any more"
    for board in (one, other):
        board.close()


def test_attention_is_no_place_in_the_line(tmp_path: Path, clock: Clock) -> None:
    """Each commit of a server at which somebody waits would stand in line for nothing."""
    one, other = HeadBoard(tmp_path), HeadBoard(tmp_path)
    one.attend()
    one.hold()
    other.begin_commit()
    assert not one.may_commit()
    other.end_commit()
    assert one.may_commit()
    for board in (one, other):
        board.close()


async def test_times_of_before_the_machine_was_started_count_for_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure each message would wait 20 ms for a commit of the life before, for weeks."""
    places = iter([0, 1, 0])
    monkeypatch.setattr(HeadBoard, "_take_place", lambda _: next(places))
    monkeypatch.setattr(HeadBoard, "_is_left", lambda board, place: place != board._own)
    for _ in range(2):
        before = HeadBoard(tmp_path)
        before.begin_commit()
        before.attend()
        before._places.release()  # it does not end in order
    clock.ns = 10**9

    async def read_head() -> int:
        return 1

    started = HeadBoard(tmp_path)
    await started.begin(1, read_head)
    assert started.may_commit()
    assert started.hold()
    started.close()
