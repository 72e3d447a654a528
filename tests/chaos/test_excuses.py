"""What a fault excuses, and what it does not: a storm that excuses too much finds nothing."""

from __future__ import annotations

import pytest

from tests.chaos.clients import Way
from tests.chaos.excuses import Excuse, Failure, How, Message

FROZEN = Excuse(
    frozenset([7]), frozenset([5]), stopped=100, resumed=110, in_hand_s=8, meanwhile_s=3, victims_s=15
)
ELSEWHERE, BY_PORT, BY_PID = Way(port=1), Way(port=5), Way(pid=7)


@pytest.mark.parametrize(
    ("began", "ended", "what", "how", "way", "excused"),
    [
        (99.0, 104.0, "state", How.UNAVAILABLE, ELSEWHERE, True),  # passed on, and in the victim's hand
        (108.0, 111.0, "state", How.UNAVAILABLE, BY_PORT, True),
        (108.0, 111.0, "state", How.UNAVAILABLE, BY_PID, True),
        (108.0, 108.1, "state", How.UNAVAILABLE, ELSEWHERE, False),  # of a worker that is well
        (98.0, 99.0, "state", How.UNAVAILABLE, ELSEWHERE, False),  # before the fault
        (111.0, 112.0, "state", How.UNAVAILABLE, BY_PORT, False),  # when all is well again
        (99.0, 104.0, "send", How.UNAVAILABLE, ELSEWHERE, False),  # has a transaction id
        (99.0, 104.0, "state", How.CUT, BY_PORT, False),
        (99.0, 114.0, "state", How.HUNG, BY_PORT, False),
    ],
)
def test_of_a_frozen_worker_only_what_it_had_in_hand_is_refused(
    began: float, ended: float, what: str, how: How, way: Way, excused: bool
) -> None:
    """People at healthy workers would be refused while another one stands still, and nobody would see it."""
    failure = Failure(f"{what} of somebody", began, ended, how, "", way)
    assert (FROZEN.stray([failure]) == []) == excused


@pytest.mark.parametrize(
    ("began", "ended", "ways", "excused"),
    [
        (101.0, 112.0, [ELSEWHERE, BY_PORT], True),
        (98.0, 107.0, [ELSEWHERE], True),  # passed on, until the victim is taken for dead
        (98.0, 109.0, [ELSEWHERE], False),
        (101.0, 105.0, [ELSEWHERE], False),  # to be done by another one
        (108.0, 112.0, [ELSEWHERE], True),  # a machine that is busy
        (108.0, 114.0, [ELSEWHERE], False),
        (111.0, 117.0, [BY_PID], False),
    ],
)
def test_only_the_clients_of_a_frozen_worker_wait_for_it(
    began: float, ended: float, ways: list[Way], excused: bool
) -> None:
    """Everybody would wait while one worker stands still, and nobody would see it."""
    assert (FROZEN.late([Message("hello", began, ended, ways)]) == []) == excused
