"""`python -m bench`: measure the servers in turn on this machine and write the results."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report
from bench.client import WrongAnswerError
from bench.goals import evaluate, growth
from bench.run import Seeding, run_server
from bench.scenarios import REGISTER_DEFAULT_HASH, SCENARIOS
from bench.scenarios.base import Pace
from bench.servers.base import Server
from bench.servers.ranvier import Ranvier
from bench.servers.synapse import Synapse

_HERE = Path(__file__).resolve().parent
_RESULTS = _HERE / "results"
_WORK = _HERE / "work"
_QUICK = Pace(seconds=0.1, counts=0.1)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what is to be measured, and the folder of the results."""
    names = [scenario.name for scenario in [*SCENARIOS, REGISTER_DEFAULT_HASH]]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--server", choices=["synapse", "ranvier", "both"], default="both")
    parser.add_argument("--only", choices=names, action="append", default=[], help="may be repeated")
    parser.add_argument(
        "--after-seed",
        type=int,
        default=0,
        metavar="EVENTS",
        help="run Ranvier's scenarios again after so many events more; default: do not",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, to see that all works")
    parser.add_argument(
        "--results", type=Path, help="default: bench/results, or bench/work/results for a partial run"
    )
    parser.add_argument("--keep", action="store_true", help="keep the servers' folders and logs")
    ranvier = _HERE.parent / ".venv" / "bin" / "python"
    parser.add_argument("--ranvier-python", default=str(ranvier), help="an interpreter that has Ranvier")
    parser.add_argument("--synapse-python", default=sys.executable, help="an interpreter that has Synapse")
    found = parser.parse_args(arguments)
    if found.results is None:
        is_whole = not found.quick and not found.only and found.server == "both"
        found.results = _RESULTS if is_whole else _WORK / "results"
    return found


def main() -> int:
    """Run the bench; the exit status is 1 when a server answered wrongly, 2 when a goal was missed."""
    arguments = parse_arguments(sys.argv[1:])
    # So that an ended bench ends the servers that it started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: Path = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path], Server]] = {
        "synapse": lambda folder: Synapse(folder, arguments.synapse_python),
        "ranvier": lambda folder: Ranvier(folder, arguments.ranvier_python),
    }
    run_id = report.new_run_id()
    for name in [arguments.server] if arguments.server != "both" else list(makers):
        if not _measure(makers[name], results, arguments, run_id):
            return 1
    return _finish(results)


def _measure(
    make: Callable[[Path], Server], results: Path, arguments: argparse.Namespace, run_id: str
) -> bool:
    _WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=_WORK))
    # PostgreSQL runs as another user when this runs as root, and has to pass.
    folder.chmod(0o755)
    server = make(folder)
    print(f"{server.title} {server.version()}", file=sys.stderr, flush=True)
    try:
        pace = _QUICK if arguments.quick else Pace()
        result = run_server(server, pace, arguments.only, _seeding(server, arguments.after_seed))
    except (WrongAnswerError, OSError, RuntimeError, ExceptionGroup) as error:
        reasons = error.exceptions if isinstance(error, ExceptionGroup) else error
        print(f"{server.title} failed: {reasons!r}; its log is in {folder}", file=sys.stderr)
        return False
    report.save(result, results, run_id)
    if not arguments.keep:
        shutil.rmtree(folder)
    return True


def _seeding(server: Server, events: int) -> Seeding | None:
    return Seeding(events, server.seed) if events and isinstance(server, Ranvier) else None


def _finish(results: Path) -> int:
    # Imported here, so that what a run is can be tested without what draws it.
    from bench.plot import draw  # noqa: PLC0415

    found = report.load(results, _RESULTS)
    table = report.markdown(found)
    (results / "results.md").write_text(table)
    draw([result for result, _ in found.values()], results / "results.png")
    print(table)
    if len(found) < len(report.NAMES):
        return 0
    ranvier = found["ranvier"][0]
    outcomes = evaluate(ranvier, found["synapse"][0]) + growth(ranvier)
    return 2 if any(outcome.is_missed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
