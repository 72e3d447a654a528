"""One of several machines: a worker that shares with others nothing but a network."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ranvier.config import load
from ranvier.processes.status import look
from tests.cluster.services import Notifications
from tests.server.process import SETTINGS, free_port

_KEY = "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n"


class Machine:
    """Run ``ranvier worker`` with a data folder, and so with sockets and shared memory, of its own.

    Other workers reach it at a TCP port of ``address``. ``settings`` are where PostgreSQL and Redis are.
    """

    def __init__(
        self, folder: Path, name: str, address: str, settings: Mapping[str, Any], secret: str | None
    ) -> None:
        self.name = name
        self.folder = folder / name
        self.data = self.folder / "data"
        self.folder.mkdir()
        (self.folder / "signing.key").write_text(_KEY)
        listener = {"type": "http", "port": free_port(), "bind_addresses": [address]}
        self.config: dict[str, Any] = {
            **SETTINGS,
            **settings,
            "signing_key_path": str(self.folder / "signing.key"),
            "rc_room_creation": {"per_second": 1_000_000, "burst_count": 1_000_000},
            "worker_name": name,
            "worker_listeners": [listener | {"resources": [{"names": ["replication"]}]}],
        }
        if secret is not None:
            (self.folder / "secret").write_text(f"{secret}\n")
            self.config["worker_replication_secret_path"] = str(self.folder / "secret")
        self.configure()
        self._notifications = Notifications(self.folder / "notify")
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, **changes: Any) -> None:
        """Write its configuration, with some settings changed."""
        (self.folder / "homeserver.yaml").write_text(json.dumps({**self.config, **changes}))

    @property
    def socket(self) -> Path:
        """Where it alone answers."""
        return self.data / "run" / f"{self.name}.http"

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ranvier.app.worker", "--data", str(self.data)),
                    *("--config-path", str(self.folder / "homeserver.yaml")),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._notifications.environment},
            )

    async def ready(self) -> None:
        """Wait until it serves."""
        await self._notifications.hear("READY=1")

    async def logged(self, text: str) -> None:
        """Wait for a line in its log."""
        async with asyncio.timeout(15):
            while text not in self.log:
                await asyncio.sleep(0.05)

    async def workers(self) -> dict[str, dict[str, Any]]:
        """Give what ``ranvier status`` here says of each worker."""
        status = await look(load([self.folder / "homeserver.yaml"]), self.data)
        return {it["name"]: it for it in status.to_json()["workers"]}

    async def end(self) -> int:
        """Wait for its end and give its exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, 30)

    def close(self) -> None:
        """Kill what is left."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._notifications.close()
