"""Run the scenarios on one server and return what they cost."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from time import perf_counter

import uvloop

from bench.measure import Measurement, Meter
from bench.proc import Memory, ProcessTree
from bench.scenarios import REGISTER_DEFAULT_HASH, SCENARIOS
from bench.scenarios.base import Bench, Pace, Scenario
from bench.servers.base import HOST, Server
from bench.world import World

_SETTLE_S = 1.0


@dataclass(frozen=True)
class Idle:
    """What a server uses while nobody asks for anything: CPU in ms per second."""

    server_cpu_ms_per_s: float
    postgres_cpu_ms_per_s: float


@dataclass(frozen=True)
class ServerResult:
    """All figures of one server."""

    name: str
    title: str
    version: str
    measurements: dict[str, Measurement]
    memory_at_rest: Memory
    memory_after: Memory
    idle: Idle

    def as_json(self) -> dict[str, object]:
        """Return plain containers."""
        return asdict(self)


def run_server(server: Server, pace: Pace, only: Collection[str]) -> ServerResult:
    """Start the server, run the scenarios (those in `only`, or all) and stop it.

    Raises WrongAnswerError, OSError, RuntimeError (the server does not start), or a group of them.
    """
    try:
        server.start()
        result = uvloop.run(_run_scenarios(server, pace, only))
    finally:
        server.stop()
    if only and REGISTER_DEFAULT_HASH.name not in only:
        return result
    server.cheap_hashing = False
    try:
        server.start()
        result.measurements.update(uvloop.run(_run_after_restart(server, pace)))
    finally:
        server.stop()
    return result


async def _run_scenarios(server: Server, pace: Pace, only: Collection[str]) -> ServerResult:
    tree = server.tree()
    idle = await _idle(tree, 10 * pace.seconds)
    at_rest = tree.memory()
    bench = Bench(World(HOST, server.port), Meter(tree), pace)
    for scenario in SCENARIOS:
        if not only or scenario.name in only or scenario.builds_world:
            await _run_one(scenario, bench)
    wanted = {name: m for name, m in bench.measurements.items() if not only or name in only}
    return ServerResult(server.name, server.title, server.version(), wanted, at_rest, tree.memory(), idle)


async def _run_after_restart(server: Server, pace: Pace) -> dict[str, Measurement]:
    bench = Bench(World(HOST, server.port), Meter(server.tree()), pace)
    await _run_one(REGISTER_DEFAULT_HASH, bench)
    return bench.measurements


async def _run_one(scenario: Scenario, bench: Bench) -> None:
    # What the scenario before left behind (background work, garbage) shall not be charged to this one.
    await asyncio.sleep(_SETTLE_S)
    gc.collect()
    gc.freeze()
    begun = perf_counter()
    await scenario.run(bench)
    measured = bench.measurements[scenario.name]
    print(
        f"  {scenario.title}: {measured.cpu_ms:.2f} ms CPU, p50 {measured.p50_ms:.1f} ms, "
        f"{measured.rate:.0f}/s, {measured.operations} operations in {perf_counter() - begun:.0f} s "
        f"(others on this machine: {measured.others_percent:.0f} %)",
        file=sys.stderr,
        flush=True,
    )


async def _idle(tree: ProcessTree, seconds: float) -> Idle:
    await asyncio.sleep(_SETTLE_S)
    before = tree.cpu()
    await asyncio.sleep(seconds)
    used = tree.cpu() - before
    return Idle(used.server_ms / seconds, used.postgres_ms / seconds)
