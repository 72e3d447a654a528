"""What the workers of a server are doing, asked of Redis and PostgreSQL from outside."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ranvier.cluster.members import RegistryLostError
from ranvier.cluster.registry import RedisRegistry
from ranvier.cluster.writers import room_writers
from ranvier.config import Config
from ranvier.processes.cluster_parts import key_prefix
from ranvier.processes.surroundings import find_redis, find_surroundings
from ranvier.spec.errors import MatrixError
from ranvier.storage import log as storage
from ranvier.storage.database import Database
from ranvier.wire.members import Member, decode_members


@dataclass(frozen=True)
class Status:
    """The state of a cluster. ``head`` is None while the database cannot be reached."""

    server_name: str
    head: int | None
    redis_error: str | None
    members: tuple[Member, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Give the same as plain values.

        ``lag`` counts rows of the log that a worker has not followed; those that ``takes_rooms`` is true for
        are the ones that rooms are placed on.
        """
        workers, writers = [], room_writers(self.members)
        for member in self.members:
            values = msgspec.to_builtins(member)
            lag = None if self.head is None else max(0, self.head - member.pos)
            uptime_s = round(time.time() - member.started_ts / 1000, 1)
            more = {"lag": lag, "uptime_s": uptime_s, "takes_rooms": member in writers}
            workers.append(values | more)
        return {
            "server_name": self.server_name,
            "log": {"head": self.head},
            "database": {"reachable": self.head is not None},
            "redis": {"reachable": self.redis_error is None, "error": self.redis_error},
            "workers": workers,
        }


def read_status(config: Config, data_dir: Path) -> Status:
    """Look at the cluster once. Raises StartError where it is not known where to look."""
    return asyncio.run(look(config, data_dir))


async def look(config: Config, data_dir: Path) -> Status:
    """Look at the cluster once. Raises StartError where it is not known where to look."""
    around = find_surroundings(config, data_dir)
    registry = RedisRegistry(find_redis(config, data_dir), prefix=key_prefix(config))
    database = Database({"dsn": around.dsn}, size=1)
    error: str | None = None
    members: list[Member] = []
    head: int | None = None
    try:
        try:
            members = decode_members(await registry.all())
        except RegistryLostError as lost:
            error = str(lost)
        try:
            head = await storage.head(database)
        except MatrixError:
            head = None
    finally:
        registry.close()
        await database.close()
    ordered = tuple(sorted(members, key=lambda member: member.name))
    return Status(config.server.server_name, head, error, ordered)
