"""Who may be waiting for a commit at another worker, wherever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from ranvier.cluster.attention import Attention
from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.members import Members
from ranvier.wire.members import Member


def member(name: str, heads: str = "here", *, says_attention: bool = True) -> Member:
    """Make a worker."""
    return Member(
        name=name,
        instance=name,
        pid=1,
        host="a",
        address="unix:/a",
        heads=heads,
        says_attention=says_attention,
    )


class Neighbours:
    """The members of a cluster, and their memory."""

    def __init__(self) -> None:
        self.own = member("own")
        self.found: list[Member] = []
        self.knows_all = True
        self.attended = False
        self._change: Callable[[], None] = lambda: None

    def others(self) -> list[Member]:
        return self.found

    def listen(self, change: Callable[[], None]) -> None:
        self._change = change

    def are(self, *found: Member) -> None:
        self.found = list(found)
        self._change()

    def is_attended(self) -> bool:
        return self.attended


@pytest.fixture
def neighbours() -> Neighbours:
    """Give those who are there: nobody yet."""
    return Neighbours()


@pytest.fixture
def attention(neighbours: Neighbours) -> Attention:
    """Give what a worker knows of them."""
    return Attention(cast(HeadBoard, neighbours), cast(Members, neighbours))


def test_nobody_waits_at_workers_of_this_machine_that_say_nothing(
    neighbours: Neighbours, attention: Attention
) -> None:
    """Commits would be told one by one for nobody."""
    assert not attention.is_elsewhere()
    neighbours.are(member("one"), member("two"))
    assert not attention.is_elsewhere()
    neighbours.attended = True
    assert attention.is_elsewhere()


@pytest.mark.parametrize(
    "other", [member("elsewhere", "there"), member("older", says_attention=False)], ids=lambda it: it.name
)
def test_who_cannot_say_so_may_wait(neighbours: Neighbours, attention: Attention, other: Member) -> None:
    """Messages would be late on another machine, and during an update at the workers of the old release."""
    neighbours.are(member("one"), other)
    assert attention.is_elsewhere()
    neighbours.are(member("one"))
    assert not attention.is_elsewhere()


def test_who_is_not_known_yet_may_wait(neighbours: Neighbours, attention: Attention) -> None:
    """Messages would be late on other machines after a start, and once Redis is back."""
    neighbours.knows_all = False
    assert attention.is_elsewhere()
