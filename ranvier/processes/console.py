"""What the page at ``/_ranvier/`` and ``ranvier status`` show: this process, and all other workers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ranvier
from ranvier.cluster.members import memory_bytes
from ranvier.cluster.overview import OneProcess, Overview
from ranvier.config import Config
from ranvier.config.listeners import Listener
from ranvier.http.loop_lag import LoopLag
from ranvier.processes.core import Core
from ranvier.processes.figures import ProcessFigures
from ranvier.sync.notifier import Notifier
from ranvier.wire.members import Member

_SUFFIX: Final = ".http"


@dataclass(frozen=True)
class ConsoleParts:
    """The overview sees one process until it is told of ``workers``. ``figures.run`` is to run always."""

    overview: Overview
    figures: ProcessFigures


def build_console(
    core: Core,
    config: Config,
    notifier: Notifier,
    loop_lag: LoopLag,
    requests: Callable[[], tuple[int, int, int]],
) -> ConsoleParts:
    """Build the parts. ``requests`` is what ``ProcessFigures`` asks."""
    figures = ProcessFigures(core, notifier, loop_lag, requests)
    started_ts = core.clock.now_ms()

    def own() -> Member:
        answered, _, _ = requests()
        return Member(
            name=config.worker.name,
            instance="",
            pid=os.getpid(),
            host=platform.node(),
            address="",
            version=ranvier.__version__,
            started_ts=started_ts,
            pos=core.tail.pos,
            load=figures.cpu,
            memory_bytes=memory_bytes(),
            requests=answered,
            connections=core.database.used,
            figures=figures.now,
        )

    overview = Overview(
        server_name=config.server.server_name,
        workers=OneProcess(own),
        tail=core.tail,
        database=core.database,
        clock=core.clock,
    )
    return ConsoleParts(overview, figures)


def private_listener(folder: Path, name: str) -> Listener:
    """Give the listener for the administrators of this machine, who are asked for nothing."""
    resources = frozenset({"client", "console", "metrics", "health"})
    return Listener(resources, path=folder / f"{name}{_SUFFIX}", mode=0o600)


def private_sockets(folder: Path) -> list[Path]:
    """Give the sockets of the private listeners in a folder."""
    return sorted(folder.glob(f"*{_SUFFIX}"))
