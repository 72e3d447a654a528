"""Ranvier as `ranvier up --workers N` runs it: a front, N workers, embedded PostgreSQL and Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from bench.servers.base import START_TIMEOUT_S, environment
from bench.servers.ranvier import Ranvier

Workers = dict[str, dict[str, Any]]
"""What `ranvier status` tells of each worker, by name."""


class RanvierWorkers(Ranvier):
    """This checkout's Ranvier as `count` workers; with `spread` rooms are placed on all of them."""

    def __init__(self, folder: Path, python: str, count: int, *, spread: bool = False) -> None:
        super().__init__(folder, python)
        self.count = count
        self.spread = spread
        self.name = f"ranvier-{count}" + ("-spread" if spread else "")
        self.title = f"Ranvier, {count} worker{'s' if count > 1 else ''}" + (", all write" if spread else "")
        self._places: list[str] = []
        self.next_worker = f"worker{count + 1}"

    def command(self) -> list[str]:
        """Return the `up` command with the number of workers."""
        return [*super().command(), "--workers", str(self.count)]

    def start(self) -> None:
        """Start everything and return when each worker serves."""
        super().start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(live := self.live_workers()) < self.count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.title}: not all workers serve")
            time.sleep(0.2)
        self._places = list(live)

    def places(self) -> list[str]:
        """Return the names of the workers that it was started with."""
        return self._places

    def live_workers(self) -> dict[str, int]:
        """Return the process IDs of the workers that serve, by name."""
        return {name: worker["pid"] for name, worker in self.look().items()}

    def look(self) -> Workers:
        """Return the workers that serve; none if it could not be found out."""
        command = [self._python, "-m", "ranvier.cli", "status", "--json", "--data", str(self._data)]
        command += ["--config", str(self.folder / "homeserver.yaml")]
        result = subprocess.run(command, capture_output=True, check=False, env=environment(), cwd=self.folder)
        if result.returncode:
            return {}
        workers = json.loads(result.stdout)["workers"]
        return {worker["name"]: worker for worker in workers if worker["state"] == "live"}

    def _settings(self) -> dict[str, object]:
        return super()._settings() | ({"spread_rooms": "always"} if self.spread else {})

    def add_worker(self) -> None:
        """Ask the front for one worker more, `next_worker`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTTIN)


def met_by(token: str, workers: Iterable[str]) -> str:
    """Return the worker that gets connections which a user's request begins (rendezvous hashing)."""
    return _heaviest("user", sha256(token.encode()).hexdigest(), workers)


def placed_on(room_id: str, writers: Iterable[str]) -> str:
    """Return the one of the workers that write which has a room."""
    return _heaviest("room", room_id, writers)


def _heaviest(kind: str, key: str, names: Iterable[str]) -> str:
    def weight(name: str) -> bytes:
        return blake2b(f"{kind}\0{key}\0{name}".encode(), digest_size=8).digest()

    return max(names, key=weight)
