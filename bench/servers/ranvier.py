"""Ranvier as `ranvier up` runs it: one process with its embedded PostgreSQL."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bench.servers.base import HOST, RATE_LIMITS, Server, environment

_ROOT = Path(__file__).resolve().parents[2]


class Ranvier(Server):
    """This checkout's Ranvier, run by `python`, an interpreter that has it installed."""

    name = "ranvier"
    title = "Ranvier"

    def __init__(self, folder: Path, python: str, *, cheap_hashing: bool = True) -> None:
        super().__init__(folder, cheap_hashing=cheap_hashing)
        self._python = python

    def configure(self) -> None:
        """Write the settings that Synapse gets too, by the same names. (JSON is YAML.)"""
        (self.folder / "homeserver.yaml").write_text(json.dumps(self._settings(), indent=1))

    def command(self) -> list[str]:
        """Return the `up` command."""
        folders = ["--data", str(self._data), "--config", str(self.folder / "homeserver.yaml")]
        return [self._python, "-m", "ranvier.cli", "up", *folders, "--port", str(self.port)]

    def postgres_pids(self) -> tuple[int, ...]:
        """Return the embedded cluster's postmaster, which may not be a child of the server's process."""
        return tuple(int(path.read_text().split()[0]) for path in self._data.rglob("postmaster.pid"))

    def version(self) -> str:
        """Return the checkout's version."""
        code = "import ranvier; print(ranvier.__version__)"
        return subprocess.check_output([self._python, "-c", code], text=True, cwd=_ROOT).strip()

    def seed(self, events: int) -> None:
        """Make the log longer by so many events while the server is stopped; raises RuntimeError."""
        command = [self._python, "-m", "bench.seed", "--data", str(self._data), "--events", str(events)]
        result = subprocess.run(command, cwd=_ROOT, env=environment(), check=False)
        if result.returncode:
            raise RuntimeError("seeding failed")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _settings(self) -> dict[str, object]:
        resources = [{"names": ["client"]}]
        listener = {"port": self.port, "type": "http", "bind_addresses": [HOST], "resources": resources}
        settings: dict[str, object] = {
            "server_name": "bench.localhost",
            "report_stats": False,
            "listeners": [listener],
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "presence": {"enabled": False},
            "log_level": "WARNING",
            **RATE_LIMITS,
        }
        cheap = {"password_config": {"argon2": {"time_cost": 1, "memory": "64K", "parallelism": 1}}}
        return settings | (cheap if self.cheap_hashing else {})
