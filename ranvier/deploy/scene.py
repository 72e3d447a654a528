"""What is examined: the configuration of each process of one machine, and how it was deployed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ranvier.config import Config, ConfigError, Problem, load
from ranvier.config.database import RedisConfig
from ranvier.config.listeners import Listener
from ranvier.deploy.findings import Finding
from ranvier.deploy.guard import advice_if_closed, unexamined
from ranvier.deploy.record import Record
from ranvier.deploy.settings import Settings
from ranvier.deploy.target import Target


@dataclass(frozen=True)
class Process:
    """One worker as it is configured. ``source`` is the file that is its own."""

    source: str
    config: Config

    @property
    def name(self) -> str:
        """Give the worker's name."""
        return self.config.worker.name

    @property
    def listeners(self) -> Sequence[Listener]:
        """Give where it answers."""
        return self.config.own_listeners


@dataclass(frozen=True)
class Scene:
    """Everything that the checks look at.

    ``processes`` are those whose configuration can be read. ``settings`` are those of ``ranvier deploy``, if
    it was used. ``dsn`` and ``redis`` say where the server's database and bus are, and are None where nothing
    says so; ``hidden`` says that this is because it may not be read. ``names_known`` tells whether
    ``processes`` are all workers, so that one that is not there is missing. ``watch_s`` is how long workers
    are watched; each announces itself once a second. ``public`` is where the web server answers clients, if
    it is on this machine, and ``public_tls`` where else, if a person gave it a certificate; ``systemctl`` is
    the program that asks systemd, if systemd runs this machine. ``record`` knows what was deployed.
    ``drained`` are workers that were told to have no clients any more.
    """

    target: Target
    processes: Sequence[Process]
    settings: Settings | None
    data_dir: Path
    dsn: str | None
    redis: RedisConfig | None
    prefix: str
    names_known: bool
    now_ms: Callable[[], int]
    hidden: bool = False
    watch_s: float = 2.5
    public: tuple[str, int] | None = None
    public_tls: tuple[str, int] | None = None
    systemctl: str | None = None
    record: Record = field(default_factory=Record)
    drained: frozenset[str] = frozenset()

    @property
    def config(self) -> Config:
        """Give the configuration of the first process; there has to be one."""
        return self.processes[0].config


def load_processes(sources: Sequence[Sequence[Path]]) -> tuple[list[Process], list[Finding]]:
    """Read the configuration of each process and tell everything that is wrong with it, once."""
    processes: list[Process] = []
    findings: dict[str, Finding] = {}
    for paths in sources:
        try:
            config = load(paths)
            problems = config.warnings
            processes.append(Process(str(paths[-1]), config))
        except ConfigError as failed:
            problems = failed.problems
        except OSError as failed:
            told = unexamined("the configuration", failed)
            findings[told.message] = told
            continue
        for problem in problems:
            advice = _advice(problem) if problem.severity == "error" else ""
            findings[str(problem)] = Finding(problem.severity, "config", str(problem), advice)
    return processes, list(findings.values())


def _advice(problem: Problem) -> str:
    if problem.line:
        return "correct this line"
    if problem.key:
        return "set it"
    if "Permission denied" in problem.message:
        return advice_if_closed()
    return "bring it back from a copy, or put it right"
