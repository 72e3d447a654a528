"""Ask a running server on one of its private sockets, as ``ranvier status`` does."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from ranvier.admin_api.console import GUARD
from ranvier.cluster.overview import API
from ranvier.config import Config
from ranvier.processes.console import private_sockets
from ranvier.processes.run_folder import find_run_folder

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = 5.0  # a worker that is frozen takes the connection and says nothing
_NEXT_AFTER_S: Final = 0.3


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PATIENCE_S)
        self.sock.connect(str(self._path))


def sockets_of(config: Config, data_dir: Path) -> list[Path]:
    """Give every socket that a worker of this server may answer on. Raises ``OSError``."""
    listeners = (*config.worker.listeners, *config.listeners)
    configured = [it.path for it in listeners if it.path is not None and "console" in it.resources]
    return [*private_sockets(find_run_folder(data_dir)), *configured]


def ask_status(sockets: Iterable[Path]) -> dict[str, Any] | None:
    """Give what the first worker that answers tells of all; None if none does.

    The next one is asked while the one before still may answer: it may stand still.
    """
    answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    asked = answered = 0
    for path in sockets:
        Thread(target=_ask, args=(path, answers), daemon=True).start()
        asked += 1
        with suppress(Empty):
            found = answers.get(timeout=_NEXT_AFTER_S)
            answered += 1
            if found is not None:
                return found
    for _ in range(asked - answered):
        if (found := answers.get()) is not None:
            return found
    return None


def _ask(path: Path, answers: SimpleQueue[dict[str, Any] | None]) -> None:
    found = None
    try:
        found = _get(path, f"{API}/status")
    except (OSError, HTTPException, ValueError) as error:
        # It is gone, stands still or is of another version: the next one may not be.
        logger.debug("Nothing is told on %s: %s", path, error)
    finally:
        answers.put(found)


def _get(path: Path, target: str) -> dict[str, Any]:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target, headers={GUARD: "1"})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise HTTPException(f"status {response.status}")
        found: dict[str, Any] = json.loads(body)
    finally:
        connection.close()
    return found
