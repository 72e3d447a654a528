"""A Ranvier server as a person starts it: a process of its own, killed and started again as tests like."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.server.http_client import HttpClient

SERVER_NAME = "test.localhost"
SHARED_SECRET = "a secret of the tests"

_NO_LIMIT = {"per_second": 1_000_000, "burst_count": 1_000_000}
SETTINGS: Mapping[str, Any] = {
    "server_name": SERVER_NAME,
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "registration_shared_secret": SHARED_SECRET,
    "allow_guest_access": True,
    "drain_timeout": "5s",
    # A password hash is hard work on purpose, and not what these tests are about.
    "password_config": {"argon2": {"time_cost": 1, "memory": "64K", "parallelism": 1}},
    **dict.fromkeys(("rc_message", "rc_registration", "rc_joins_per_room", "rc_key_requests"), _NO_LIMIT),
    "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), _NO_LIMIT),
    "rc_joins": dict.fromkeys(("local", "remote"), _NO_LIMIT),
    "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), _NO_LIMIT),
    "rc_presence": {"per_user": _NO_LIMIT},
    "rc_registration_token_validity": _NO_LIMIT,
}


def free_port() -> int:
    """Find a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """Run ``ranvier up`` in a folder, with limits off and registration open.

    ``settings`` go over the defaults, ``arguments`` follow those of ``up``, ``environment`` goes over that of
    the tests. After ``kill`` the next ``start`` is what an administrator would do.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._arguments = arguments
        self._environment = environment or {}
        self.server_name = SERVER_NAME
        self.port = free_port()
        # Not asyncio's: a server of the whole session outlives the event loop of a test.
        self._process: subprocess.Popen[bytes] | None = None
        listener = {
            "port": self.port,
            "type": "http",
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client", "health", "metrics"]}],
        }
        self.config = {**SETTINGS, "listeners": [listener], **(settings or {})}
        self.write_config()

    def write_config(self, **changes: Any) -> None:
        """Write its configuration file, with some settings changed."""
        (self.folder / "homeserver.yaml").write_text(json.dumps({**self.config, **changes}))

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server wrote since its folder was made."""
        return (self.folder / "server.log").read_text(errors="replace")

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start it and wait until it answers. Raises AssertionError, with its log, if it ends instead."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, 60)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ranvier.cli", "up"),
                    *("--data", str(self.folder / "data")),
                    *("--config", str(self.folder / "homeserver.yaml")),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
                process_group=0,  # as a shell does: a terminal sends Ctrl-C to all that is in it
            )
        async with asyncio.timeout(timeout_s), HttpClient(self.url) as client:
            while not await client.is_up():
                assert self._process.poll() is None, f"the server ended:\n{self.log[-5000:]}"
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """Ask it to stop, as SIGTERM does, and give its exit status (0 if it does not run)."""
        process = self._process
        if process is None:
            return 0
        process.terminate()
        status = await asyncio.to_thread(process.wait, 60)
        self._process = None
        return status

    async def wait(self) -> int:
        """Wait until it ends by itself, and give its exit status."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 60)

    def kill(self) -> None:
        """Kill it on the spot (SIGKILL); ``start`` or ``restart`` brings it back."""
        if self._process is not None:
            self._process.kill()

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()
