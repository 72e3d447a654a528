"""Tell systemd how this process is: sd_notify, the few lines of it that are needed.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Final

_NOTIFY: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"


def notify(*assignments: str, wait_s: float = 1.0) -> None:
    """Send assignments such as ``READY=1``; nothing happens where no service manager listens.

    One that is busy is waited for, for at most ``wait_s`` seconds, in which the process stands still.
    """
    address = os.environ.get(_NOTIFY, "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(wait_s)
        try:
            sock.connect(address)
            sock.sendall("\n".join(assignments).encode())
        except OSError:
            return  # a manager that is restarting or busy; it looks after us again by itself


def ready(status: str) -> None:
    """Say that the process serves."""
    notify("READY=1", f"STATUS={status}")


def reloading() -> None:
    """Say that the configuration is being read again; ``ready`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that the process is about to end."""
    notify("STOPPING=1", "STATUS=Draining")


async def watchdog() -> None:
    """Say regularly that the event loop runs, for ever; at once done where nobody watches."""
    text = os.environ.get(_WATCHDOG, "")
    if not text.isdigit() or not int(text):
        return
    while True:
        notify("WATCHDOG=1", wait_s=0)
        await asyncio.sleep(int(text) / 1e6 / 3)
