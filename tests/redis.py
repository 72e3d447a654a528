"""A private Redis for tests, and things to do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ranvier.config.database import RedisConfig
from ranvier.log.clock import SystemClock
from ranvier.log.redis_bus import RedisBus
from ranvier.log.redis_connection import RedisConnection
from ranvier.processes.redis import EmbeddedRedis
from tests.postgres import private_folder


class PrivateRedis:
    """A Redis that is being run."""

    def __init__(self, server: EmbeddedRedis, config: RedisConfig) -> None:
        self.server = server
        self.config = config

    @property
    def pid(self) -> int:
        """Give the number of its process."""
        assert self.server.pid is not None
        return self.server.pid

    async def ask(self, *words: str | bytes | int) -> Any:
        """Send it a command."""
        connection = await RedisConnection.open(self.config)
        try:
            return await connection.command(*words)
        finally:
            connection.close()


@asynccontextmanager
async def private_redis() -> AsyncIterator[PrivateRedis]:
    """Run a Redis in a folder of its own."""
    with private_folder() as folder:
        server = EmbeddedRedis(folder)
        config = await server.start()
        try:
            yield PrivateRedis(server, config)
        finally:
            await server.stop()


@asynccontextmanager
async def running_bus(bus: RedisBus) -> AsyncIterator[RedisBus]:
    """Keep a bus connected; listeners are to be there before."""
    await bus.start()
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def make_bus(config: RedisConfig, prefix: str = "test:") -> RedisBus:
    """Make a bus that is not connected yet."""
    return RedisBus(config, prefix=prefix, clock=SystemClock())


async def until(condition: Any, timeout_s: float = 15.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
