"""PostgreSQL and Redis as another machine runs them: at TCP ports; and a service manager that listens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.redis import private_redis


@asynccontextmanager
async def services(dsn: str) -> AsyncIterator[dict[str, Any]]:
    """Run a Redis, and give the settings with which servers find it and a database, both over TCP."""
    at = urlsplit(dsn)
    query = parse_qs(at.query)
    postgres = Path(query["host"][0]) / f".s.PGSQL.{query['port'][0]}"
    async with private_redis() as redis, tcp_port_of(postgres) as postgres_port:
        assert redis.config.path is not None
        async with tcp_port_of(redis.config.path) as redis_port:
            database = {
                "host": "127.0.0.1",
                "port": postgres_port,
                "user": at.username,
                "dbname": at.path.removeprefix("/"),
                "cp_max": 6,
                "sslmode": "disable",
            }
            yield {
                "database": {"name": "asyncpg", "args": database | {"cp_min": 2}},
                "redis": {"enabled": True, "host": "127.0.0.1", "port": redis_port},
            }


@asynccontextmanager
async def tcp_port_of(path: Path, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Give a TCP port that leads to a UNIX socket, by TLS if that is given."""
    tasks: set[asyncio.Task[Any]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(path))
        writers.extend((writer, inner_writer))
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


class Notifications:
    """Hear what a process tells its service manager; ``environment`` is what it is started with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._heard.bind(str(path))
        self._heard.setblocking(False)
        self.heard: list[str] = []
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}

    async def hear(self, wanted: str) -> None:
        """Wait for a notification."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while True:
                told = (await loop.sock_recv(self._heard, 4096)).decode().split("\n")
                self.heard.append(told[0])
                if wanted in told:
                    return

    def close(self) -> None:
        """Stop hearing."""
        self._heard.close()
        self._path.unlink(missing_ok=True)
