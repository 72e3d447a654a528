"""What the workers of a server are doing, asked of Redis and PostgreSQL from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import ranvier
from ranvier.cluster.descriptions import describe_log, describe_worker, natural_order
from ranvier.cluster.members import RegistryLostError
from ranvier.cluster.registry import RedisRegistry
from ranvier.cluster.stores import Store, database_size, describe_postgresql, describe_redis
from ranvier.cluster.writers import room_writers
from ranvier.config import Config
from ranvier.processes.cluster_parts import key_prefix
from ranvier.processes.surroundings import find_redis, find_surroundings
from ranvier.storage.database import Database
from ranvier.wire.members import Member, decode_members

_PATIENCE_S: Final = 2.0


@dataclass(frozen=True)
class Status:
    """The state of a cluster. ``members`` are empty while Redis cannot be asked for them."""

    server_name: str
    database: Store
    redis: Store
    members: tuple[Member, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Give the same as plain values, in the form in which workers tell it (``cluster.overview``)."""
        members, now_ms = self.members, int(time.time() * 1000)
        writers = room_writers(members)
        head: int | None = self.database.get("pos")
        rows_per_s = max((it.figures.rows_per_s for it in members), default=None)
        return {
            "server_name": self.server_name,
            "version": ranvier.__version__,
            "now_ts": now_ms,
            "answered_by": None,
            "one_process": False,
            "workers": [
                describe_worker(
                    member,
                    now_ms=now_ms,
                    heard_s_ago=None,
                    lag=None if head is None else max(0, head - member.pos),
                    takes_rooms=member in writers,
                    rooms=None,
                    actions=(),
                )
                for member in members
            ],
            "gone": [],
            "log": describe_log(head, rows_per_s, members),
            "database": self.database,
            "redis": self.redis,
        }


def read_status(config: Config, data_dir: Path) -> Status:
    """Look at the cluster once. Raises StartError where it is not known where to look."""
    return asyncio.run(look(config, data_dir))


async def look(config: Config, data_dir: Path) -> Status:
    """Look at the cluster once. Raises StartError where it is not known where to look."""
    around, redis = find_surroundings(config, data_dir), find_redis(config, data_dir)
    registry = RedisRegistry(redis, prefix=key_prefix(config))
    database = Database({"dsn": around.dsn}, size=1)
    try:
        members, base, bus = await asyncio.gather(
            _members(registry),
            describe_postgresql(database, partial(database_size, database)),
            describe_redis(redis, int(time.time() * 1000)),
        )
    finally:
        registry.close()
        await database.close()
    ordered = tuple(sorted(members, key=lambda member: natural_order(member.name)))
    return Status(config.server.server_name, base, bus, ordered)


async def _members(registry: RedisRegistry) -> Sequence[Member]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return decode_members(await registry.all())
    except (RegistryLostError, TimeoutError):
        return ()  # that Redis does not answer is told of it
