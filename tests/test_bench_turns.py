"""What the bench says of two servers that it measured by turns."""

from __future__ import annotations

import math

import pytest

from bench.goals import Outcome
from bench.measure import Measurement
from bench.turns import Ratio, is_enough, ratio

BOUND = 1.25


def _measured(*turns_ms: float) -> Measurement:
    return Measurement("", 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, turns_ms)


def test_what_two_servers_cost_is_compared_turn_by_turn() -> None:
    """A machine that is slow in one turn would make one server dearer in the published table."""
    found = ratio(_measured(1.2, 2.4, 1.2, 2.4), _measured(1.0, 2.0, 1.0, 2.0))
    assert found.value == pytest.approx(1.2)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    moved = ratio(_measured(1.1, 1.3, 1.1, 1.3), _measured(1, 1, 1, 1))
    assert moved.error == pytest.approx(math.log(1.3 / 1.1) / math.sqrt(3) / 2)
    assert ratio(_measured(1.2), _measured(1.0)).error == math.inf


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (1.10, 0.02, "yes"),
        (1.24, 0.04, "not decided"),
        (1.26, 0.04, "not decided"),
        (1.24, 0.002, "yes"),
        (1.40, 0.02, "**no**"),
        (1.10, math.inf, "not decided"),
    ],
)
def test_a_goal_is_passed_or_missed_only_where_chance_did_not_decide(
    value: float, error: float, verdict: str
) -> None:
    """Two runs of the same code would publish "yes" and "no"."""
    outcome = Outcome("", "≤ 1.25×", "", Ratio(value, error).is_at_most(BOUND))
    assert outcome.verdict == verdict
    assert outcome.is_missed == (verdict != "yes")


def test_a_figure_without_a_goal_is_not_missed() -> None:
    """The bench would end with status 2 for what nobody set a bound to."""
    outcome = Outcome("", "", "1.4×", None)
    assert (outcome.verdict, outcome.is_missed) == ("", False)


@pytest.mark.parametrize(
    ("found", "bound", "turns"),
    [
        (Ratio(1.0, 0.02), BOUND, 8),
        (Ratio(1.25, 0.02), BOUND, 40),
        (Ratio(1.25, 0.02), None, 8),
    ],
)
def test_turns_are_added_until_it_is_decided(found: Ratio, bound: float | None, turns: int) -> None:
    """A bench of what is surely well below its bound would take several times as long; and it must end."""
    assert next(it for it in range(1, 100) if is_enough(it, [found], bound)) == turns


def test_each_server_comes_first_as_often_as_the_other() -> None:
    """What comes second in a turn would be dearer, or cheaper, by what the first one leaves behind."""
    assert [it for it in range(1, 17) if is_enough(it, [Ratio(1.0, 0.02)], BOUND)] == [8, 10, 12, 14, 16]
