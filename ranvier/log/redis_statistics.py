"""What Redis tells of itself to people who look at the server."""

from __future__ import annotations

from collections.abc import Mapping

from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable


async def read_statistics(config: RedisConfig) -> Mapping[str, str]:
    """Give the fields of Redis's INFO, over a connection for this alone. Raises RedisUnavailable.

    There are none where the server's user may not ask for it, as the server does without.
    Source: the Redis documentation, command INFO.
    """
    connection = await RedisConnection.open(config)
    try:
        answer: bytes = await connection.command("INFO")
    except RedisUnavailable:
        if not connection.is_open:
            raise
        return {}
    finally:
        connection.close()
    lines = answer.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
