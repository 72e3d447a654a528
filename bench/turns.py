"""Run the scenarios on several servers by turns, in short pieces: the machine's moods meet all alike.

What two servers cost is compared turn by turn. Where that has a bound, turns are added until it is known on
which side of it they are.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import uvloop

from bench.client import Client
from bench.measure import Measurement, Meter
from bench.run import SETTLE_S, ServerResult, measure_idle, run_quietly, running, wanted
from bench.scenarios import SCENARIOS, SEND_ATTENDED
from bench.scenarios.base import Bench, Pace, Scenario
from bench.servers.base import HOST, Server
from bench.waiters import make_waiter
from bench.world import World

_TURNS = 8
_MOST_TURNS = 40
SURE_ERRORS = 2.2
# Workers on which nobody waits follow half a second later.
_PUT_OFF_S = 0.7


@dataclass(frozen=True)
class Ratio:
    """What one server's operations cost beside another's: the geometric mean of all turns.

    `error` is the standard error of that, as a part of it: chance moves it by less in two of three runs.
    """

    value: float
    error: float

    def is_at_most(self, bound: float) -> bool | None:
        """Tell on which side of a bound it is; None if that is nearer than `SURE_ERRORS` standard errors."""
        distance = math.log(bound / self.value)
        return None if abs(distance) <= SURE_ERRORS * self.error else distance > 0


def ratio(other: Measurement, base: Measurement) -> Ratio:
    """Compare what was measured by turns."""
    turns = [math.log(one / two) for one, two in zip(other.turns_ms, base.turns_ms, strict=True)]
    error = statistics.stdev(turns) / math.sqrt(len(turns)) if len(turns) > 1 else math.inf
    return Ratio(math.exp(statistics.mean(turns)), error)


def run_by_turns(
    servers: Sequence[Server], pace: Pace, only: Collection[str], bounds: Mapping[str, float]
) -> list[ServerResult]:
    """Start all servers, run the scenarios in `only` on each in turn, and stop them.

    Only the server whose turn it is has something to do. `bounds` are of what an operation of a scenario may
    cost beside the first server's. Raises as `run_server`.
    """
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(running(server))
        return uvloop.run(_run(servers, pace, only, bounds))


async def _run(
    servers: Sequence[Server], pace: Pace, only: Collection[str], bounds: Mapping[str, float]
) -> list[ServerResult]:
    trees = [server.tree() for server in servers]
    idle = await asyncio.gather(*(measure_idle(tree, 10 * pace.seconds) for tree in trees))
    at_rest = [tree.memory() for tree in trees]
    turns = _TURNS if len(servers) > 1 else 1
    piece = Pace(pace.seconds / turns, pace.counts / turns)
    waiters = max(len(server.places()) for server in servers) if SEND_ATTENDED.name in only else 0
    benches = [
        Bench(World(HOST, server.port), Meter(tree, _PUT_OFF_S), piece, await _make_waiters(server, waiters))
        for server, tree in zip(servers, trees, strict=True)
    ]
    for scenario in [*SCENARIOS, SEND_ATTENDED]:
        if scenario.builds_world:
            for bench in benches:
                await run_quietly(scenario, replace(bench, pace=pace))
        elif scenario.name in only:
            await _take_turns(scenario, benches, bounds.get(scenario.name))
            for server, bench in zip(servers, benches, strict=True):
                measured = bench.measurements[scenario.name]
                print(
                    f"  {server.title}: {scenario.title}: {measured.cpu_ms:.3f} ms CPU,"
                    f" {measured.operations} operations",
                    file=sys.stderr,
                    flush=True,
                )
    return [
        ServerResult(
            server.name,
            server.title,
            server.version(),
            wanted(bench.measurements, only),
            rest,
            bench.meter.tree.memory(),
            nothing,
        )
        for server, bench, rest, nothing in zip(servers, benches, at_rest, idle, strict=True)
    ]


async def _make_waiters(server: Server, count: int) -> list[Client]:
    """Make so many users, of whom each worker meets as many as any other."""
    places = server.places()
    wanted = [places[number % len(places)] for number in range(count)]
    return [await make_waiter(HOST, server.port, place, places) for place in wanted]


async def _take_turns(scenario: Scenario, benches: Sequence[Bench], bound: float | None) -> None:
    for turn in itertools.count():
        for bench in benches if turn % 2 else reversed(benches):
            # Later it has rested while it was another server's turn.
            await run_quietly(scenario, bench, 0.0 if turn else SETTLE_S)
        base, *others = [bench.measurements[scenario.name] for bench in benches]
        if not others or is_enough(turn + 1, [ratio(other, base) for other in others], bound):
            return


def is_enough(turns: int, found: Iterable[Ratio], bound: float | None) -> bool:
    """Tell whether so many turns say on which side of a bound the servers are, or more would not either."""
    if turns < _TURNS or turns % 2:  # who comes first alternates
        return False
    return bound is None or turns >= _MOST_TURNS or all(it.is_at_most(bound) is not None for it in found)
