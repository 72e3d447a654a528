"""`python -m bench.workers`: measure Ranvier with one to four workers, and Synapse with its own."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import uvloop

from bench import report
from bench.client import WrongAnswerError
from bench.run import ServerResult, running
from bench.scenarios import SEND_ATTENDED
from bench.scenarios.base import Pace
from bench.servers.base import HOST, Server
from bench.servers.ranvier import Ranvier
from bench.servers.ranvier_workers import RanvierWorkers
from bench.servers.synapse_workers import PROGRAMS, SynapseWorkers
from bench.turns import run_by_turns
from bench.workers.goals import COMPARED, evaluate
from bench.workers.load import AT_ONCE, make_rooms, make_user
from bench.workers.scenarios import WorkerFigures, adding_figures, idle_costs, ranvier_figures
from bench.workers.table import markdown

_S = TypeVar("_S", bound=Server)
_HERE = Path(__file__).resolve().parents[1]
_WORK = _HERE / "work"
_PACE = Pace(seconds=0.75, counts=0.75)
_QUICK = Pace(seconds=0.1, counts=0.1)
_SCENARIOS = ("send_many_rooms", "fanout", "send_many_clients")
_BOUNDS = {scenario: bound for scenario, _, bound in COMPARED if bound is not None}
_WORKERS = [1, 2, 3, 4]
_SPREAD = [2, 4]
_ALL = (_WORKERS, _SPREAD)
_WORKERS_FOR_FIGURES = 3
_ERRORS = (WrongAnswerError, OSError, RuntimeError, ExceptionGroup)


class _Run:
    """What has been measured so far, written to `bench/work/results` after each server."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._pace = _QUICK if arguments.quick else _PACE
        self._seconds = 2.0 if arguments.quick else 10.0
        self._when = report.new_run_id() + (", a quick run" if arguments.quick else "")
        self._results: list[list[ServerResult]] = []
        self._figures: dict[str, WorkerFigures] = {}
        self._notes: list[str] = []
        self._page = _WORK / "results" / "workers.md"

    def ranvier(self) -> None:
        """Measure each number of workers by turns with the single process, then what only workers have."""
        python = self._arguments.ranvier_python
        names = (*_SCENARIOS, SEND_ATTENDED.name)
        bounds = {} if self._arguments.quick else _BOUNDS
        for count in self._arguments.workers:
            self._scenarios(partial(_beside_single, python, count), names, bounds)
        for count in self._arguments.spread:
            self._scenarios(partial(_beside_single, python, count, spread=True), _SCENARIOS, {})
        for spread, figures in ((False, ranvier_figures), (True, adding_figures)):
            self._figures_of(
                partial(RanvierWorkers, python=python, count=_WORKERS_FOR_FIGURES, spread=spread), figures
            )

    def synapse(self) -> None:
        """Measure Synapse with its workers."""
        python = self._arguments.synapse_python
        self._scenarios(lambda folder: [SynapseWorkers(folder, python)], _SCENARIOS, {})
        self._figures_of(partial(SynapseWorkers, python=python), _synapse_figures)

    def _scenarios(
        self, make: Callable[[Path], Sequence[Server]], names: Sequence[str], bounds: Mapping[str, float]
    ) -> None:
        """Measure servers by turns; the last one's costs are compared with the first one's."""

        def run(folder: Path) -> None:
            servers = make(folder)
            title = servers[-1].title
            print(title, file=sys.stderr, flush=True)
            self._guarded(
                title, lambda: self._results.append(run_by_turns(servers, self._pace, names, bounds))
            )

        with_folder(run)

    def _figures_of(
        self, make: Callable[[Path], _S], measure: Callable[[_S, float], Coroutine[None, None, WorkerFigures]]
    ) -> None:
        """Measure what only workers have."""

        def run(folder: Path) -> None:
            server = make(folder)
            print(f"{server.title}: {measure.__name__}", file=sys.stderr, flush=True)

            def figures() -> None:
                with running(server):
                    self._figures[server.title] = uvloop.run(measure(server, self._seconds))

            self._guarded(server.title, figures)

        with_folder(run)

    def _guarded(self, title: str, work: Callable[[], None]) -> None:
        """Do one part; if it fails, the table says so and the others are measured all the same."""
        try:
            work()
        except _ERRORS as error:
            reasons = error.exceptions if isinstance(error, ExceptionGroup) else error
            print(f"{title} failed: {reasons!r}", file=sys.stderr, flush=True)
            self._notes.append(f"{title}: {str(reasons)[:300]!r}")
        self._page.parent.mkdir(parents=True, exist_ok=True)
        self._page.write_text(markdown(self._results, self._figures, self._when, self._notes))

    def finish(self) -> int:
        """Print the table; the exit status is 1 when a part failed, 2 when a goal was not surely reached."""
        page = self._page.read_text()
        print(page)
        if self._notes:
            print(f"Not all was measured; what was is in {self._page}", file=sys.stderr)
            return 1
        self._arguments.results.parent.mkdir(parents=True, exist_ok=True)
        self._arguments.results.write_text(page)
        return 2 if any(outcome.is_missed for outcome in evaluate(self._results, self._figures)) else 0


async def _synapse_figures(server: SynapseWorkers, seconds: float) -> WorkerFigures:
    user = await make_user(HOST, server.port)
    rooms = await make_rooms(user, AT_ONCE, server.worker_ports["generic1"])
    return WorkerFigures(await idle_costs(rooms, server.live_workers()["generic2"], seconds))


def _beside_single(python: str, count: int, folder: Path, *, spread: bool = False) -> list[Server]:
    workers = RanvierWorkers(folder / "workers", python, count, spread=spread)
    return [Ranvier(folder / "single", python), workers]


def with_folder(work: Callable[[Path], None]) -> None:
    """Do something with a folder of its own, which is removed afterwards."""
    _WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=_WORK))
    # PostgreSQL runs as another user when this runs as root, and has to pass.
    folder.chmod(0o755)
    try:
        work(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what is to be measured, and where the page goes if it could be."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the time: to see that it works")
    parser.add_argument("--server", choices=["ranvier", "synapse", "both"], default="both")
    parser.add_argument("--workers", type=int, nargs="*", default=_WORKERS, help="default: 1 2 3 4")
    spread = "the same with rooms placed on all workers, whatever they have to do; default: 2 4"
    parser.add_argument("--spread", type=int, nargs="*", default=_SPREAD, help=spread)
    results = "where the page goes if all could be measured; default: bench/results, or bench/work if partial"
    parser.add_argument("--results", type=Path, help=results)
    ranvier = _HERE.parent / ".venv" / "bin" / "python"
    parser.add_argument("--ranvier-python", default=str(ranvier), help="an interpreter that has Ranvier")
    parser.add_argument(
        "--synapse-python", default=sys.executable, help="one that has matrix-synapse[redis] and psycopg2"
    )
    found = parser.parse_args(arguments)
    if found.results is None:
        is_whole = not found.quick and found.server == "both" and (found.workers, found.spread) == _ALL
        found.results = (_HERE / "results" if is_whole else _WORK / "results") / "workers.md"
    return found


def main() -> int:
    """Run the bench."""
    arguments = parse_arguments(sys.argv[1:])
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and arguments.server != "ranvier":
        print(f"Synapse's workers need {' and '.join(missing)}, which this machine has not", file=sys.stderr)
        return 1
    # So that an ended bench ends the servers that it started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = _Run(arguments)
    if arguments.server != "synapse":
        run.ranvier()
    if arguments.server != "ranvier":
        run.synapse()
    return run.finish()


if __name__ == "__main__":
    sys.exit(main())
