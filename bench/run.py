"""Run the scenarios on one server and return what they cost."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

import uvloop

from bench.measure import Measurement, Meter
from bench.proc import Memory, ProcessTree
from bench.scenarios import REGISTER_DEFAULT_HASH, SCENARIOS
from bench.scenarios.base import Bench, Pace, Scenario
from bench.servers.base import HOST, Server
from bench.world import World

SETTLE_S = 1.0
_QUIET_MS_PER_S = 50.0
_QUIET_WITHIN_S = 120


@dataclass(frozen=True)
class Idle:
    """What a server uses while nobody asks for anything: CPU in ms per second."""

    server_cpu_ms_per_s: float
    postgres_cpu_ms_per_s: float


@dataclass(frozen=True)
class ServerResult:
    """All figures of one server; `after_seed` are those with `seeded_events` more in its log."""

    name: str
    title: str
    version: str
    measurements: dict[str, Measurement]
    memory_at_rest: Memory
    memory_after: Memory
    idle: Idle
    seeded_events: int = 0
    after_seed: dict[str, Measurement] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return plain containers."""
        return asdict(self)


@dataclass(frozen=True)
class Seeding:
    """How a stopped server's log is made longer, and by how many events."""

    events: int
    seed: Callable[[int], None]


def run_server(
    server: Server, pace: Pace, only: Collection[str], seeding: Seeding | None = None
) -> ServerResult:
    """Start the server, run the scenarios (those in `only`, or all) and stop it; seed it and run them again.

    Raises WrongAnswerError, OSError, RuntimeError (the server does not start), or a group of them.
    """
    world = World(HOST, server.port)
    with running(server):
        result = uvloop.run(_run_scenarios(server, world, pace, only))
    if not only or REGISTER_DEFAULT_HASH.name in only:
        server.cheap_hashing = False
        with running(server):
            result.measurements.update(uvloop.run(_run_with_default_hash(server, pace)))
        server.cheap_hashing = True
    if seeding is None:
        return result
    seeding.seed(seeding.events)
    with running(server):
        after = uvloop.run(_run_after_seed(server, world, pace, only))
    return replace(result, seeded_events=seeding.events, after_seed=after)


@contextmanager
def running(server: Server) -> Iterator[None]:
    """Have a server run inside the `with` block."""
    try:
        server.start()
        yield
    finally:
        server.stop()


async def _run_scenarios(server: Server, world: World, pace: Pace, only: Collection[str]) -> ServerResult:
    tree = server.tree()
    idle = await measure_idle(tree, 10 * pace.seconds)
    at_rest = tree.memory()
    bench = Bench(world, Meter(tree), pace)
    await _run_all(bench, bench, only)
    measured = wanted(bench.measurements, only)
    return ServerResult(server.name, server.title, server.version(), measured, at_rest, tree.memory(), idle)


async def _run_after_seed(
    server: Server, world: World, pace: Pace, only: Collection[str]
) -> dict[str, Measurement]:
    """Run the scenarios once more: users and rooms are made anew beside the world, the rest is done in it."""
    world.reconnect()
    await _quiet(server.tree())
    meter = Meter(server.tree())
    beside = World(HOST, server.port, user_prefix="after-seed")
    await _run_all(Bench(beside, meter, pace), Bench(world, meter, pace), only)
    return wanted(meter.measurements, only)


async def _run_all(builder: Bench, bench: Bench, only: Collection[str]) -> None:
    for scenario in SCENARIOS:
        if not only or scenario.name in only or scenario.builds_world:
            await run_one(scenario, builder if scenario.builds_world else bench)


def wanted(measurements: dict[str, Measurement], only: Collection[str]) -> dict[str, Measurement]:
    """Return the measurements in `only`, or all if that is empty."""
    return {name: m for name, m in measurements.items() if not only or name in only}


async def _run_with_default_hash(server: Server, pace: Pace) -> dict[str, Measurement]:
    bench = Bench(World(HOST, server.port), Meter(server.tree()), pace)
    await run_one(REGISTER_DEFAULT_HASH, bench)
    return bench.measurements


async def run_one(scenario: Scenario, bench: Bench) -> None:
    """Run one scenario and tell what came of it."""
    begun = perf_counter()
    await run_quietly(scenario, bench)
    measured = bench.measurements[scenario.name]
    print(
        f"  {scenario.title}: {measured.cpu_ms:.2f} ms CPU, p50 {measured.p50_ms:.1f} ms, "
        f"{measured.rate:.0f}/s, {measured.operations} operations in {perf_counter() - begun:.0f} s "
        f"(others on this machine: {measured.others_percent:.0f} %)",
        file=sys.stderr,
        flush=True,
    )


async def run_quietly(scenario: Scenario, bench: Bench, settle_s: float = SETTLE_S) -> None:
    """Run one scenario."""
    # What the scenario before left behind (background work, garbage) shall not be charged to this one.
    await asyncio.sleep(settle_s)
    gc.collect()
    gc.freeze()
    await scenario.run(bench)


async def _quiet(tree: ProcessTree) -> None:
    """Wait until the server has caught up in the background with what was put into its database."""
    for _ in range(_QUIET_WITHIN_S):
        before = tree.cpu()
        await asyncio.sleep(1)
        if (tree.cpu() - before).total_ms < _QUIET_MS_PER_S:
            return


async def measure_idle(tree: ProcessTree, seconds: float) -> Idle:
    """Measure a server that nobody asks for anything."""
    await asyncio.sleep(SETTLE_S)
    before = tree.cpu()
    await asyncio.sleep(seconds)
    used = tree.cpu() - before
    return Idle(used.server_ms / seconds, used.postgres_ms / seconds)
