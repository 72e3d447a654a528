"""Synapse in its simplest form: one process on a PostgreSQL of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path

from bench.postgres import PrivatePostgres
from bench.servers.base import HOST, RATE_LIMITS, START_TIMEOUT_S, Server

_LOGGING = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
    "disable_existing_loggers": False,
}


class Synapse(Server):
    """Synapse from PyPI, run by `python`, an interpreter that has matrix-synapse and psycopg2."""

    name = "synapse"
    title = "Synapse"

    def __init__(self, folder: Path, python: str, *, cheap_hashing: bool = True) -> None:
        super().__init__(folder, cheap_hashing=cheap_hashing)
        self._python = python
        self._postgres: PrivatePostgres | None = None

    def start(self) -> None:
        """Start PostgreSQL, then Synapse, and return when its background updates are over.

        A new database has dozens of them to run, which would be charged to the first scenarios.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = not (self.folder / "postgres").exists()
        self._postgres = PrivatePostgres(self.folder)
        self._postgres.start()
        if fresh:
            self._postgres.create_database("synapse")
        super().start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._postgres.query("synapse", "SELECT count(*) FROM background_updates") != "0":
            if time.monotonic() > deadline:
                raise RuntimeError("Synapse's background updates do not end")
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop Synapse, then PostgreSQL."""
        super().stop()
        if self._postgres is not None:
            self._postgres.stop()

    def configure(self) -> None:
        """Write homeserver.yaml, the log settings and the signing key. (JSON is YAML.)"""
        seed = base64.b64encode(os.urandom(32)).decode().rstrip("=")
        key = self.folder / "signing.key"
        if not key.exists():
            key.write_text(f"ed25519 a_bench {seed}\n")
        (self.folder / "log.yaml").write_text(json.dumps(_LOGGING))
        (self.folder / "homeserver.yaml").write_text(json.dumps(self._settings(), indent=1))

    def command(self) -> list[str]:
        """Return the command of the main process."""
        return [self._python, "-m", "synapse.app.homeserver", "-c", str(self.folder / "homeserver.yaml")]

    def postgres_pids(self) -> tuple[int, ...]:
        """Return the private cluster's postmaster."""
        return (self._postgres.pid,) if self._postgres is not None else ()

    def version(self) -> str:
        """Return the installed version."""
        code = "import importlib.metadata as m; print(m.version('matrix-synapse'))"
        return subprocess.check_output([self._python, "-c", code], text=True).strip()

    def _settings(self) -> dict[str, object]:
        assert self._postgres is not None
        resources = [{"names": ["client"], "compress": False}]
        listener = {"port": self.port, "type": "http", "bind_addresses": [HOST], "resources": resources}
        arguments = {
            "host": str(self._postgres.socket_folder),
            "user": "bench",
            "dbname": "synapse",
            "cp_min": 5,
            "cp_max": 10,
        }
        settings: dict[str, object] = {
            "server_name": "bench.localhost",
            "report_stats": False,
            "listeners": [listener],
            "database": {"name": "psycopg2", "args": arguments},
            "log_config": str(self.folder / "log.yaml"),
            "media_store_path": str(self.folder / "media"),
            "signing_key_path": str(self.folder / "signing.key"),
            "macaroon_secret_key": "bench",
            "trusted_key_servers": [],
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "presence": {"enabled": False},
            "background_updates": {"sleep_enabled": False},
            **RATE_LIMITS,
        }
        return settings | ({"bcrypt_rounds": 4} if self.cheap_hashing else {})
