"""Where a worker that nobody started for `ranvier up` finds PostgreSQL and Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from ranvier.config import Config
from ranvier.config.database import RedisConfig
from ranvier.processes.front_protocol import redis_config, redis_fields
from ranvier.processes.run_folder import find_run_folder, run_folder
from ranvier.processes.start_error import StartError
from ranvier.processes.worker import Surroundings

_NAME: Final = "surroundings.json"
_CONNECTIONS_BESIDE: Final = 5


class HiddenError(StartError):
    """Say that what a running `ranvier up` tells is for its own user only."""


class _Told(msgspec.Struct):
    """What a running `ranvier up` tells: where its PostgreSQL and Redis are."""

    dsn: str
    redis: dict[str, Any]


@contextmanager
def telling_surroundings(data_dir: Path, dsn: str, redis: RedisConfig | None) -> Iterator[None]:
    """Leave word for workers that are started beside this process; only its user can read it.

    Where there is no Redis nobody can be beside it, and nothing is told.
    """
    path = run_folder(data_dir) / _NAME
    path.unlink(missing_ok=True)
    if redis is None:
        yield
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(msgspec.json.encode(_Told(dsn, redis_fields(redis))))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_redis(config: Config, data_dir: Path) -> RedisConfig:
    """Give the configured Redis, or that of the running `ranvier up`. Raises StartError, HiddenError."""
    if config.redis is not None:
        return config.redis
    told = _told(data_dir)
    if told is None:
        raise StartError(
            "there is no Redis: set `redis: {enabled: true, path: …}` in the configuration, or start "
            "`ranvier up --workers N` with the same data folder first"
        )
    return redis_config(told.redis)


def find_surroundings(config: Config, data_dir: Path) -> Surroundings:
    """Find what a worker of several needs. Raises StartError."""
    redis = find_redis(config, data_dir)
    if config.database is not None:
        return Surroundings(config.database.dsn(), redis, config.database.max_connections)
    told = _told(data_dir)
    if told is None:
        raise StartError(
            "there is no PostgreSQL: set `database` in the configuration, or start `ranvier up` with "
            "the same data folder first"
        )
    return Surroundings(told.dsn, redis, _CONNECTIONS_BESIDE)


def _told(data_dir: Path) -> _Told | None:
    """Read what was told; nothing is made. Raises HiddenError for what another user keeps to itself."""
    try:
        folder = find_run_folder(data_dir)
        path = folder / _NAME
        # Others than the server's user may have made a folder of this name.
        if folder.lstat().st_uid not in (os.geteuid(), data_dir.stat().st_uid):
            raise HiddenError(f"{folder} is not a folder of the user that runs Ranvier")
        return msgspec.json.decode(path.read_bytes(), type=_Told)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    except PermissionError as error:
        raise HiddenError(
            f"the server of {data_dir} belongs to another user ({error}): be that user"
        ) from error
