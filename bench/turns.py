"""Run the scenarios on several servers by turns, in short pieces: the machine's moods meet all alike.

What two servers cost is compared turn by turn; where that matters, turns are added until it is known well.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import uvloop

from bench.measure import Measurement, Meter
from bench.run import ServerResult, measure_idle, run_quietly, running, wanted
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Bench, Pace
from bench.servers.base import HOST, Server
from bench.world import World

_TURNS = 6
_MOST_TURNS = 14
_KNOWN_WELL = 0.02
# Workers on which nobody waits follow half a second later.
_PUT_OFF_S = 0.7


@dataclass(frozen=True)
class Ratio:
    """What one server's operations cost beside another's: the geometric mean of all turns.

    `error` is the standard error of that, as a part of it: how far chance alone moves it.
    """

    value: float
    error: float


def ratio(other: Measurement, base: Measurement) -> Ratio:
    """Compare what was measured by turns."""
    turns = [math.log(one / two) for one, two in zip(other.turns_ms, base.turns_ms, strict=True)]
    error = statistics.stdev(turns) / math.sqrt(len(turns)) if len(turns) > 1 else math.inf
    return Ratio(math.exp(statistics.mean(turns)), error)


def run_by_turns(
    servers: Sequence[Server], pace: Pace, only: Collection[str], compared: Collection[str] = ()
) -> list[ServerResult]:
    """Start all servers, run the scenarios in `only` on each in turn, and stop them.

    Only the server whose turn it is has something to do. Those in `compared` go on until it is known well how
    the servers compare. Raises as `run_server`.
    """
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(running(server))
        return uvloop.run(_run(servers, pace, only, compared))


async def _run(
    servers: Sequence[Server], pace: Pace, only: Collection[str], compared: Collection[str]
) -> list[ServerResult]:
    trees = [server.tree() for server in servers]
    idle = await asyncio.gather(*(measure_idle(tree, 10 * pace.seconds) for tree in trees))
    at_rest = [tree.memory() for tree in trees]
    turns = _TURNS if len(servers) > 1 else 1
    piece = Pace(pace.seconds / turns, pace.counts / turns)
    benches = [
        Bench(World(HOST, server.port), Meter(tree, _PUT_OFF_S), piece)
        for server, tree in zip(servers, trees, strict=True)
    ]
    for scenario in SCENARIOS:
        if scenario.builds_world:
            for bench in benches:
                await run_quietly(scenario, replace(bench, pace=pace))
        elif scenario.name in only:
            for turn in range(_MOST_TURNS if turns > 1 and scenario.name in compared else turns):
                if turn >= turns and _is_known_well(benches, scenario.name):
                    break
                for bench in benches if turn % 2 else reversed(benches):
                    await run_quietly(scenario, bench)
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


def _is_known_well(benches: Sequence[Bench], name: str) -> bool:
    base, *others = [bench.measurements[name] for bench in benches]
    return all(ratio(other, base).error <= _KNOWN_WELL for other in others)
