"""The goals that Ranvier set itself, as data, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.run import ServerResult

Figure = Callable[[ServerResult], float]


@dataclass(frozen=True)
class Goal:
    """A bound on a figure: of Ranvier alone, or of Ranvier divided by the known server (`relative`)."""

    title: str
    figure: Figure
    bound: float
    at_least: bool = False
    relative: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run has to say to one goal; the texts are for the table.

    `passed` is None if the run does not decide it. Without a `goal` it is only told what was reached.
    """

    title: str
    goal: str
    reached: str
    passed: bool | None

    @property
    def is_missed(self) -> bool:
        """Tell whether there is a goal that was not surely reached."""
        return bool(self.goal) and not self.passed

    @property
    def verdict(self) -> str:
        """Return the word for the table."""
        return {True: "yes", False: "**no**", None: "not decided"}[self.passed] if self.goal else ""


def _of(scenario: str, figure: str) -> Figure:
    def read(result: ServerResult) -> float:
        return float(getattr(result.measurements[scenario], figure))

    return read


def _cpu(title: str, scenario: str, divisor: int) -> Goal:
    return Goal(f"{title}: CPU", _of(scenario, "cpu_ms"), 1 / divisor, relative=True)


def _rate(title: str, scenario: str, factor: int) -> Goal:
    return Goal(f"{title}: rate", _of(scenario, "rate"), factor, at_least=True, relative=True)


GOALS = [
    _rate("send, 16 clients, many rooms", "send_many_rooms", 15),
    _cpu("send, 16 clients, many rooms", "send_many_rooms", 15),
    _rate("send, 16 clients, one room", "send_one_room", 15),
    _cpu("send, 16 clients, one room", "send_one_room", 15),
    Goal("send, serially: p50", _of("send_serial", "p50_ms"), 5, unit=" ms"),
    _cpu("delivery to 50 listeners", "fanout", 30),
    Goal("delivery to 50 listeners: p99", _of("fanout", "p99_ms"), 50, unit=" ms"),
    _cpu("initial sync", "initial_sync", 10),
    _cpu("create room", "create_room", 12),
    _cpu("join", "join", 12),
    _cpu("/messages?limit=50", "messages", 4),
    _cpu("room state, 5 members", "state", 4),
    _cpu("room state, 50 members", "state_big", 4),
    _cpu("register", "register", 4),
    _cpu("whoami", "whoami", 4),
    Goal("memory at rest without PostgreSQL", lambda r: r.memory_at_rest.server_rss, 90, unit=" MiB"),
]


MOST_GROWTH = 1.3


def growth(result: ServerResult) -> list[Outcome]:
    """Say for each scenario how its CPU per operation grew with the log; empty if that was not measured."""
    outcomes = []
    for name, after in result.after_seed.items():
        if (before := result.measurements.get(name)) is not None:
            ratio = after.cpu_ms / before.cpu_ms
            outcomes.append(Outcome(name, f"≤ {MOST_GROWTH}×", f"{ratio:.2f}×", ratio <= MOST_GROWTH))
    return outcomes


def evaluate(ranvier: ServerResult, other: ServerResult) -> list[Outcome]:
    """Return the outcome of each goal whose figures were measured."""
    outcomes = []
    for goal in GOALS:
        try:
            figure = goal.figure(ranvier)
            outcomes.append(_outcome(goal, figure, goal.figure(other)))
        except KeyError:  # a scenario that this run left out
            continue
    return outcomes


def _outcome(goal: Goal, figure: float, others: float) -> Outcome:
    value = figure / others if goal.relative else figure
    passed = value >= goal.bound if goal.at_least else value <= goal.bound
    sign = "≥" if goal.at_least else "≤"
    if not goal.relative:
        return Outcome(goal.title, f"{sign} {goal.bound:g}{goal.unit}", f"{value:.1f}{goal.unit}", passed)
    if goal.at_least:
        return Outcome(goal.title, f"{sign} {goal.bound:g}×", f"{value:.1f}×", passed)
    return Outcome(
        goal.title, f"{sign} 1/{1 / goal.bound:.0f}", f"1/{1 / value:.1f}" if value else "0", passed
    )
