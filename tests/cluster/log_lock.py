"""The lock of the log, held by a test: what workers commit waits in PostgreSQL meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from ranvier.processes.postgres import running_dsn
from tests.cluster.cluster_process import ClusterProcess


@asynccontextmanager
async def connection_of(cluster: ClusterProcess) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection to a running server's database."""
    dsn = running_dsn(cluster.folder / "data")
    assert dsn is not None
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def log_locked(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Have no commit come to its end until this is left."""
    async with connection.transaction():
        await connection.execute("SELECT pos FROM log_head FOR UPDATE")
        yield
