"""`python -m bench.stalls`: how long one piece of work in a large room keeps everybody else waiting.

It runs under Ranvier's own interpreter, seeds a room of many members, does in it what people do, and prints
for each thing how late the event loop came to what was due (from `/metrics`), the CPU time and the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.http_client import Connection
from bench.seed.large_room import seed_large_room
from bench.servers.base import HOST
from bench.servers.ranvier import Ranvier
from bench.stalls.things import PREPARED, THINGS, Thing
from bench.stalls.world import World, people, tokens

_WORK = Path(__file__).resolve().parents[1] / "work"
_LAG = "ranvier_event_loop_lag_seconds"
_BUSY = "ranvier_event_loop_busy_seconds"


class MeasuredRanvier(Ranvier):
    """A Ranvier that gives its metrics, too."""

    interpreter: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self._data

    def command(self) -> list[str]:
        """Return the `up` command, under a profiler where one was asked for."""
        command = super().command()
        return [*self.interpreter, *command[command.index("up") :]] if self.interpreter else command

    def _settings(self) -> dict[str, object]:
        settings = super()._settings()
        listener = {"port": self.port, "type": "http", "bind_addresses": [HOST]}
        return {**settings, "listeners": [{**listener, "resources": [{"names": ["client", "metrics"]}]}]}


@dataclass(frozen=True)
class Measured:
    """What one thing cost: longest stall and longest busy stretch in ms (upper bounds), CPU ms, memory."""

    name: str
    stall_ms: float
    busy_ms: float
    cpu_ms: float
    took_ms: float
    rss_mib: float


async def _histograms(port: int) -> dict[str, dict[float, float]]:
    connection = Connection(HOST, port)
    text = (await connection.request("GET", "/metrics")).body.decode()
    connection.close()
    found: dict[str, dict[float, float]] = {_LAG: {}, _BUSY: {}}
    for line in text.splitlines():
        name, _, rest = line.partition("_bucket{le=")
        if name in found:
            bound, _, count = rest.partition("} ")
            found[name][float(bound.strip('"'))] = float(count)
    return found


def _longest_ms(before: dict[float, float], after: dict[float, float]) -> float:
    """Return the upper bound of the fullest bucket that anything was added to."""
    bounds = sorted(after)
    grown = [after[bound] - before[bound] for bound in bounds]
    return next((bound for bound, count in zip(bounds, grown, strict=True) if count == grown[-1]), 0.0) * 1000


async def measure(server: MeasuredRanvier, world: World, thing: Thing) -> Measured:
    """Do one thing and say what it cost."""
    await tokens(world, PREPARED.get(thing, 0))
    await asyncio.sleep(0.3)
    before, cpu, begun = await _histograms(world.port), server.tree().cpu(), time.perf_counter()
    await thing(world)
    took_ms = (time.perf_counter() - begun) * 1000
    after, used = await _histograms(world.port), server.tree().cpu() - cpu
    return Measured(
        thing.__name__,
        _longest_ms(before[_LAG], after[_LAG]),
        _longest_ms(before[_BUSY], after[_BUSY]),
        used.total_ms,
        took_ms,
        server.tree().memory().server_rss,
    )


def _line(it: Measured) -> str:
    figures = (it.stall_ms, it.busy_ms, it.cpu_ms, it.took_ms, it.rss_mib)
    return f"| {it.name:22} | {' | '.join(f'{figure:8.0f}' for figure in figures)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stalls", description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=1200, help="how many of the members have a session")
    parser.add_argument("--messages", type=int, default=5300)
    parser.add_argument("--only", choices=[thing.__name__ for thing in THINGS], action="append", default=[])
    parser.add_argument("--folder", type=Path, help="keep the server's folder here")
    parser.add_argument("--interpreter", nargs="+", default=[], help="instead of `python -m ranvier.cli`")
    return parser.parse_args()


async def _run(server: MeasuredRanvier, arguments: argparse.Namespace) -> None:
    # Look often: a server of its own looks every 100 ms.
    os.environ["RANVIER_LOOP_LAG_PERIOD_S"] = "0.005"
    world = World(server.port, members=arguments.members)
    server.start()
    await people(world, arguments.users, 20)
    server.stop()
    known = [user.user_id for user in world.users]
    world.large = await seed_large_room(server.data, known, world.members, arguments.messages)
    server.start()
    for user in (*world.users, *world.guests):
        user.connection = Connection(HOST, world.port)
    print(f"A room of {world.members}: longest stall of the event loop, longest CPU time of it at once (both")
    print("the upper bound of their bucket), CPU of server and PostgreSQL, time to the answer, memory\n")
    print(f"| {'thing':22} | stall ms | busy ms | CPU ms | took ms | RSS MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for thing in THINGS:
        if not arguments.only or thing.__name__ in arguments.only:
            print(_line(await measure(server, world, thing)), flush=True)


def main() -> int:
    """Measure, and clear up."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _WORK.mkdir(exist_ok=True)
    folder = arguments.folder or Path(tempfile.mkdtemp(dir=_WORK))
    folder.mkdir(exist_ok=True, parents=True)
    folder.chmod(0o755)  # PostgreSQL runs as another user when this runs as root, and has to pass
    server = MeasuredRanvier(folder, sys.executable)
    server.interpreter = tuple(arguments.interpreter)
    try:
        asyncio.run(_run(server, arguments))
    finally:
        server.stop()
        if arguments.folder is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
