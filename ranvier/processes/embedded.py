"""What the embedded PostgreSQL and Redis have in common: their folder, its lock, and short socket paths."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

LOCK_TIMEOUT_S = 0.2
POLL_INTERVAL_S = 0.01
SUPERVISE_INTERVAL_S = 0.5


class FolderInUse(Exception):
    """Say that another process runs what is in the folder."""


def take_lock(home: Path) -> int:
    """Make the folder and take its lock, as an open file to be closed.

    Raises FolderInUse, and OSError where the folder can not be used.
    """
    # Root's own folders stay open to be walked through, for the user that the program runs as.
    home.parent.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Tried for a moment, because who only wants to know whether it is taken takes it to look at it.
    if not wait_until(lambda: try_lock(lock), LOCK_TIMEOUT_S):
        os.close(lock)
        raise FolderInUse(f"the data folder {home.parent} is in use by another running Ranvier")
    return lock


def try_lock(lock: int) -> bool:
    """Take the lock of an open file if nobody has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait in a thread until something is so; False after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


def folder_in_tmp(prefix: str, folder: Path) -> Path:
    """Make a folder for sockets in place of one whose path is too long, mostly the same one each time.

    So who is beside a server finds it again after a restart. To be called with the lock. Raises ``OSError``.
    """
    made = Path("/tmp", prefix + sha256(os.fsencode(folder)).hexdigest()[:16])
    shutil.rmtree(made, ignore_errors=True)  # what a server left that was killed
    try:
        made.mkdir(mode=0o700)
    except FileExistsError:  # somebody else has taken the name, who is not to keep this server from starting
        return Path(mkdtemp(prefix=prefix, dir="/tmp"))
    return made


def works_in(pid: int, folder: Path) -> bool:
    """Tell whether a process is alive and works inside a folder: an orphan, and not a stranger."""
    try:
        os.kill(pid, 0)
        if not Path("/proc/self/cwd").exists():
            return True  # no /proc: the number has to do
        return Path(os.readlink(f"/proc/{pid}/cwd")) == folder
    except (ProcessLookupError, PermissionError, FileNotFoundError):  # the last for one that is dying
        return False
