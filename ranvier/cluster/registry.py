"""Where workers announce themselves: a key in Redis for each, which Redis forgets when it is not renewed."""

from __future__ import annotations

from typing import Any, Final

from ranvier.cluster.members import RegistryLostError
from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable

# ``<prefix>members`` names all who announced themselves lately; ``<prefix>member:<name>`` is what they said.
_READ: Final = """
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local value = redis.call('GET', ARGV[1] .. name)
  if value then found[#found + 1] = value else redis.call('SREM', KEYS[1], name) end
end
return found
"""
_ANNOUNCE: Final = (
    """
redis.call('SET', ARGV[1] .. ARGV[2], ARGV[3], 'PX', ARGV[4])
redis.call('SADD', KEYS[1], ARGV[2])
"""
    + _READ
)


class RedisRegistry:
    """Keep announcements in Redis, over a connection of its own."""

    def __init__(self, config: RedisConfig, *, prefix: str) -> None:
        self._config = config
        self._names = f"{prefix}members"
        self._key_prefix = f"{prefix}member:"
        self._connection: RedisConnection | None = None

    async def announce(self, name: str, value: bytes, lease_ms: int) -> list[bytes]:
        """Keep a worker's announcement for ``lease_ms`` and give everybody's. Raises RegistryLostError."""
        found: list[bytes] = await self._command(
            "EVAL", _ANNOUNCE, 1, self._names, self._key_prefix, name, value, lease_ms
        )
        return found

    async def all(self) -> list[bytes]:
        """Give everybody's announcement. Raises RegistryLostError."""
        found: list[bytes] = await self._command("EVAL", _READ, 1, self._names, self._key_prefix)
        return found

    async def withdraw(self, name: str) -> None:
        """Forget a worker. Raises RegistryLostError."""
        await self._command("DEL", self._key_prefix + name)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _command(self, *words: str | bytes | int) -> Any:
        try:
            if self._connection is None or not self._connection.is_open:
                self._connection = await RedisConnection.open(self._config)
            return await self._connection.command(*words)
        except RedisUnavailable as error:
            raise RegistryLostError(str(error)) from error
