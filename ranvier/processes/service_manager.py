"""Tell systemd how this process is: sd_notify, the few lines of it that are needed.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Final

_NOTIFY: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_EXEC_PID: Final = "SYSTEMD_EXEC_PID"


class ServiceManager:
    """Tell whoever runs this process what it does; nothing happens where ``address`` is empty.

    ``watchdog_s``: within how many seconds it wants to hear that the event loop runs; 0 if it does not.
    ``is_there`` tells whether there is one at all, which starts the process again when it ends.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0, *, is_there: bool = False) -> None:
        self.is_there = is_there
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        # Kept open: a process that may open no more files is alive, and is to be able to say so.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None

    @classmethod
    def take(cls) -> ServiceManager:
        """Read from the environment who runs this process, and take that out of it.

        The processes that this one starts have nothing to say: PostgreSQL would tell that all is ready.
        """
        address = os.environ.pop(_NOTIFY, "")
        watchdog, pid = os.environ.pop(_WATCHDOG, ""), os.environ.pop(_WATCHDOG_PID, "")
        mine = watchdog.isdigit() and pid in ("", str(os.getpid()))
        # Whatever is started in a terminal has INVOCATION_ID, too, from the terminal's own unit.
        is_there = bool(address) or os.environ.get(_EXEC_PID) == str(os.getpid())
        return cls(address, int(watchdog) / 1e6 if mine else 0.0, is_there=is_there)

    def ready(self, status: str) -> None:
        """Say that the process serves."""
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; ``ready`` ends it."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the process is about to end."""
        self._notify("STOPPING=1", "STATUS=Draining")

    async def watchdog(self) -> None:
        """Say regularly that the event loop runs, for ever; at once done where nobody watches."""
        while self._watchdog_s:
            self._notify("WATCHDOG=1", wait_s=0)
            await asyncio.sleep(self._watchdog_s / 3)

    def _notify(self, *assignments: str, wait_s: float = 1.0) -> None:
        """Send assignments. A busy manager is waited for, for at most ``wait_s``: all stands still."""
        if self._socket is None:
            return
        self._socket.settimeout(wait_s)
        with contextlib.suppress(OSError):  # one that is restarting or busy looks after us again by itself
            self._socket.sendto("\n".join(assignments).encode(), self._address)
