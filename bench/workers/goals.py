"""The goals of the worker form, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.goals import Outcome
from bench.run import ServerResult
from bench.scenarios.send import CLIENTS, MANY_CLIENTS
from bench.turns import ratio
from bench.workers.scenarios import WorkerFigures

MOST_OF_SINGLE = 1.25
# What an event costs beside the single process: the scenario, who sends, and the bound if there is one.
COMPARED = (
    ("send_many_rooms", f"{CLIENTS} clients", MOST_OF_SINGLE),
    ("send_many_clients", f"{MANY_CLIENTS} clients", MOST_OF_SINGLE),
    ("send_attended", f"{CLIENTS} clients, and one who waits at each worker", None),
)
LEAST_BELOW_SYNAPSE = 20
IDLE_MS = {40.0: 0.1, 1000.0: 0.03}
FORWARDED_MS = 0.3
FAILOVER_S = 2.0
SLOWEST_MS = 250.0


def evaluate(results: Sequence[Sequence[ServerResult]], figures: dict[str, WorkerFigures]) -> list[Outcome]:
    """Return the outcome of each goal whose figures were measured.

    ``results`` are of servers that were measured by turns: the single process and one of workers, or Synapse.
    """
    outcomes: list[Outcome] = []
    last = [servers[-1] for servers in results]
    synapse = next((_cost(it, "send_many_rooms") for it in last if it.name.startswith("synapse")), None)
    for single, result in [servers for servers in results if len(servers) == 2]:
        if result.name.endswith("-spread"):
            continue
        outcomes += [_beside_single(single, result, *compared) for compared in COMPARED]
        if synapse is not None:
            times = synapse / _cost(result, "send_many_rooms")
            bound, reached = f"≤ 1/{LEAST_BELOW_SYNAPSE}", f"1/{times:.1f}"
            title = f"{result.title}: CPU per event beside Synapse's workers"
            outcomes.append(Outcome(title, bound, reached, times >= LEAST_BELOW_SYNAPSE))
    for title, measured in figures.items():
        if title.startswith("Ranvier"):
            outcomes += _of_workers(measured)
    return outcomes


def _beside_single(
    single: ServerResult, result: ServerResult, scenario: str, who: str, bound: float | None
) -> Outcome:
    found = ratio(result.measurements[scenario], single.measurements[scenario])
    title = f"{result.title}, {who}: CPU per event beside the single process"
    reached = f"{found.value:.2f}× ± {found.value * found.error:.2f}"
    if bound is None:
        return Outcome(title, "", reached, None)
    return Outcome(title, f"≤ {bound:g}×", reached, found.is_at_most(bound))


def _cost(result: ServerResult, scenario: str) -> float:
    """Return the CPU per event in ms."""
    return result.measurements[scenario].cpu_ms


def _of_workers(found: WorkerFigures) -> list[Outcome]:
    outcomes = [
        _at_most(
            f"idle worker at {cost.per_s:.0f} events/s: CPU per event, what it uses at rest included",
            cost.ms_per_event,
            bound,
            " ms",
            3,
        )
        for cost in found.idle
        if not cost.polled and (bound := IDLE_MS.get(cost.wanted_per_s)) is not None
    ]
    if (sent := found.sent) is not None:
        for title, value in (
            ("a room of another worker, the connection moved there: more latency (p50)", sent.settled),
            ("forwarded instead of local (the connection stays): more latency (p50)", sent.forwarded),
        ):
            outcomes.append(_at_most(title, value - sent.local, FORWARDED_MS, " ms"))
    if found.failover_s is not None:
        outcomes.append(_at_most("a killed writer's rooms go on after", found.failover_s, FAILOVER_S, " s"))
    if (adding := found.adding) is not None:
        for what, slowest in (("request", adding.during_ms), ("delivery", adding.delivered_during_ms)):
            title = f"slowest {what} while a worker is added under load"
            outcomes.append(_at_most(title, slowest, SLOWEST_MS, " ms", 0))
    return outcomes


def _at_most(title: str, value: float, bound: float, unit: str, digits: int = 2) -> Outcome:
    return Outcome(title, f"≤ {bound:g}{unit}", f"{value:.{digits}f}{unit}", value <= bound)
