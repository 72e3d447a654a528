"""PostgreSQL and Redis as people look at them. Neither is waited for long: no answer is news, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisUnavailable
from ranvier.log.redis_statistics import read_statistics as read_redis
from ranvier.spec.errors import MatrixError
from ranvier.storage.database import Database
from ranvier.storage.statistics import read_size, read_statistics

PATIENCE_S: Final = 0.8

Store = dict[str, Any]


async def describe_postgresql(database: Database, size: Callable[[], Awaitable[int | None]]) -> Store:
    """Give ``reachable`` and, if it is, its version, connections, start and head of the log.

    ``size`` gives that of the database in bytes, see ``database_size``.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = await read_statistics(database)
    except MatrixError as error:
        return {"reachable": False, "error": error.message}
    except asyncpg.PostgresError as error:  # it lets nobody in, or the server's tables are not there
        return {"reachable": False, "error": str(error)}
    except TimeoutError:
        return {"reachable": False, "error": f"no answer within {PATIENCE_S:g} s"}
    return {
        "reachable": True,
        "version": found.version,
        "connections": found.connections,
        "max_connections": found.max_connections,
        "started_ts": found.started_ts,
        "size_bytes": await size(),
        "pos": found.pos,
    }


async def database_size(database: Database) -> int | None:
    """Give the size of the database in bytes; None where that takes too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await read_size(database)
    except (MatrixError, TimeoutError):
        return None


async def describe_redis(config: RedisConfig, now_ms: int) -> Store:
    """Give ``reachable`` and, if it is and tells them, its version, clients, memory, pace and start."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = await read_redis(config)
    except RedisUnavailable as error:
        return {"reachable": False, "error": str(error)}
    except TimeoutError:
        return {"reachable": False, "error": f"no answer within {PATIENCE_S:g} s"}
    if not found:
        return {"reachable": True}
    return {
        "reachable": True,
        "version": found.get("valkey_version") or found.get("redis_version", ""),
        "clients": int(found.get("connected_clients", "0")),
        "memory_bytes": int(found.get("used_memory", "0")),
        "commands_per_s": int(found.get("instantaneous_ops_per_sec", "0")),
        "started_ts": now_ms - 1000 * int(found.get("uptime_in_seconds", "0")),
    }
