"""What a run of the bench writes, and where; and when it says that it cannot measure."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import bench.__main__
import bench.workers.__main__
from bench import report
from bench.client import WrongAnswerError
from bench.measure import Measurement
from bench.proc import Memory
from bench.run import Idle, ServerResult
from bench.servers.ranvier_workers import RanvierWorkers, Workers
from bench.workers import scenarios
from bench.workers.load import Rooms

ROOT = Path(bench.__file__).resolve().parents[1]
PUBLISHED = ROOT / "bench" / "results"


def _result(**others: Any) -> ServerResult:
    whoami = Measurement("whoami", 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0)
    memory = Memory(1, 1, 1)
    return ServerResult("ranvier", "Ranvier", "1", {"whoami": whoami}, memory, memory, Idle(1, 1), **others)


def test_a_run_publishes_what_it_measured_itself(tmp_path: Path) -> None:
    """Figures of older code would stand under the date of this run, and its goals be judged by them."""
    report.save(_result(seeded_events=5, after_seed=_result().measurements), tmp_path, "first")
    assert report.load(tmp_path)["ranvier"][0].after_seed
    report.save(_result(), tmp_path, "second")
    found, run = report.load(tmp_path)["ranvier"]
    assert (run, found.seeded_events, found.after_seed) == ("second", 0, {})


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [
        ([], True),
        (["--after-seed", "1000"], True),
        (["--quick"], False),
        (["--only", "whoami"], False),
        (["--server", "ranvier"], False),
    ],
)
def test_a_part_of_the_bench_is_not_published(arguments: Sequence[str], *, is_whole: bool) -> None:
    """One server's figures would be compared with the other one's of another day, and published so."""
    assert (bench.__main__.parse_arguments(arguments).results == PUBLISHED) == is_whole


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [
        ([], True),
        (["--workers", "1", "2", "3", "4"], True),
        (["--workers", "4"], False),
        (["--spread"], False),
        (["--quick"], False),
        (["--server", "ranvier"], False),
    ],
)
def test_a_part_of_the_bench_of_workers_is_not_published(arguments: Sequence[str], *, is_whole: bool) -> None:
    """The published page would lose the lines of the numbers of workers that were left out."""
    found = bench.workers.__main__.parse_arguments(arguments).results
    assert (found == PUBLISHED / "workers.md") == is_whole


def _bench_workers(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.workers", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120
    )


def test_a_missing_program_is_told_of_before_anything_is_measured(tmp_path: Path) -> None:
    """Somebody on a fresh machine would wait for half an hour to be told that nginx is not there."""
    found = _bench_workers(environment={**os.environ, "PATH": str(tmp_path)})
    assert found.returncode == 1
    assert found.stderr == "Synapse's workers need redis-server and nginx, which this machine has not\n"


def test_what_could_not_be_measured_replaces_no_page(tmp_path: Path) -> None:
    """A published page would be lost to one that says "Not measured"."""
    page = tmp_path / "workers.md"
    page.write_text("as published")
    parts = ["--server", "ranvier", "--workers", "--spread", "--ranvier-python", "/bin/false"]
    found = _bench_workers(*parts, "--results", str(page), environment=os.environ)
    assert found.returncode == 1, found.stderr
    assert "Ranvier, 3 workers: " in found.stdout
    assert page.read_text() == "as published"


class _Looked(RanvierWorkers):
    """Three workers, looked at again and again; ``[]`` stands for a look that fails."""

    def __init__(self, *writers: Sequence[str]) -> None:
        self.count = 3
        self._looks = list(writers)

    def look(self) -> Workers:
        writers = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        names = ("worker1", "worker2", "worker3") if writers else ()
        return {name: {"pid": int(name[-1]), "takes_rooms": name in writers} for name in names}


async def test_the_writer_is_looked_for_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench would end with a traceback where PostgreSQL was slow once, or two wrote for a while."""
    monkeypatch.setattr(scenarios, "_LOOK_S", 0.01)
    server = _Looked([], ["worker1", "worker2"], ["worker2"])
    assert await scenarios.find_writer(server) == ("worker2", {"worker1": 1, "worker2": 2, "worker3": 3})


@pytest.mark.parametrize("writers", [[], ["worker1", "worker3"]])
async def test_without_one_writer_the_bench_says_so_and_goes_on(
    writers: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is measured after it would be missing: this error is one that it notes down."""
    monkeypatch.setattr(scenarios, "_LOOK_S", 0.01)
    monkeypatch.setattr(scenarios, "_GIVE_UP_S", 0.05)
    with pytest.raises(WrongAnswerError, match="one worker is to write"):
        await scenarios.find_writer(_Looked(writers))


class _Growing(RanvierWorkers):
    """Three workers to which one is added that answers so many requests."""

    def __init__(self, taken: int) -> None:
        super().__init__(Path(), "", 3, spread=True)
        self._taken = taken
        self._names = ["worker1", "worker2", "worker3"]

    def add_worker(self) -> None:
        self._names.append(self.next_worker)

    def look(self) -> Workers:
        return {name: {"pid": 1, "takes_rooms": True, "requests": self._taken} for name in self._names}


@pytest.fixture
def _nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(*_: object) -> Rooms:
        return Rooms()

    async def slowest(*_: object) -> tuple[float, float]:
        await asyncio.sleep(0.01)
        return 20.0, 30.0

    for name in ("make_user", "make_rooms", "make_crowd"):
        monkeypatch.setattr(scenarios, name, nobody)
    monkeypatch.setattr(scenarios, "_slowest", slowest)
    monkeypatch.setattr(scenarios, "_LIVE_S", 0.05)


@pytest.mark.usefixtures("_nobody_asks")
async def test_what_an_added_worker_slows_down_is_told_if_it_had_its_part() -> None:
    """The figure would be of a worker that came when there was nothing to do any more."""
    adding = (await scenarios.adding_figures(_Growing(2000), 1.0)).adding
    assert adding is not None
    assert (adding.during_ms, adding.delivered_during_ms, adding.taken) == (20.0, 30.0, 2000)


@pytest.mark.usefixtures("_nobody_asks")
async def test_what_an_added_worker_slows_down_is_not_told_if_nobody_came_to_it() -> None:
    """The slowest request would be published of a time in which nothing changed for anybody."""
    with pytest.raises(WrongAnswerError, match="asked 3 times only"):
        await scenarios.adding_figures(_Growing(3), 1.0)
