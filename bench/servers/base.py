"""What every measured server has in common: a folder, a port, a main process, a time to get ready."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from bench.proc import ProcessTree

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0


class Server(ABC):
    """One homeserver with its PostgreSQL in a private folder, ready for many requests from few addresses.

    `cheap_hashing` makes passwords cost next to nothing on both servers, so that registering measures the
    server and not the (chosen) price of a password; without it each server hashes as it does by default.
    """

    name: str
    title: str

    def __init__(self, folder: Path, *, cheap_hashing: bool = True) -> None:
        self.folder = folder
        self.cheap_hashing = cheap_hashing
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def configure(self) -> None:
        """Write the configuration; called before each start."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def postgres_pids(self) -> tuple[int, ...]:
        """Return the process IDs of the postmasters that belong to this server."""

    @abstractmethod
    def version(self) -> str:
        """Return the server's version."""

    def places(self) -> list[str]:
        """Return the names of the workers, or one name of no meaning where it is not known who meets whom."""
        return [""]

    def start(self) -> None:
        """Start everything and return when the server answers; raises RuntimeError when it never does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configure()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
            )
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Stop everything in order; a server that does not end within a minute is killed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tree(self) -> ProcessTree:
        """Return the server's processes."""
        assert self._process is not None
        return ProcessTree((self._process.pid,), self.postgres_pids())

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.title} does not start:\n{self._log_path.read_text()[-3000:]}")
            time.sleep(0.1)


def environment() -> dict[str, str]:
    """Return the environment for a server's processes."""
    # The driver's own packages must not be seen by the server's interpreter.
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/_matrix/client/versions")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


RATE = {"per_second": 1_000_000, "burst_count": 1_000_000}
# Synapse's names, which are Ranvier's too.
RATE_LIMITS: dict[str, object] = {
    "rc_message": RATE,
    "rc_registration": RATE,
    "rc_login": {"address": RATE, "account": RATE, "failed_attempts": RATE},
    "rc_joins": {"local": RATE, "remote": RATE},
    "rc_joins_per_room": RATE,
    "rc_invites": {"per_room": RATE, "per_user": RATE, "per_issuer": RATE},
    "rc_room_creation": RATE,
    "rc_key_requests": RATE,
    "rc_presence": {"per_user": RATE},
}
