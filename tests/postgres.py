"""The one PostgreSQL that a test run uses: private, started once, a fresh database for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate

_numbers = itertools.count(1)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give a short, private folder that an unprivileged PostgreSQL may walk through, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="rv-", dir="/tmp"))
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, onerror=_unless_gone)


def _unless_gone(_: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    """Let a file that its program removed just now (a browser that ends) be gone."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a private PostgreSQL and give the DSN of its ``ranvier`` database.

    It does not wait for the disk: what survives a power cut is not what these tests ask.
    """
    with private_folder() as folder:
        postgres = EmbeddedPostgres(
            folder, settings={"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
        )
        dsn = asyncio.run(postgres.start())
        try:
            yield dsn
        finally:
            asyncio.run(postgres.stop())


def database_dsn(dsn: str, name: str) -> str:
    """Give the DSN of another database of the same PostgreSQL."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@asynccontextmanager
async def fresh_database(dsn: str, *, template: str = "template0") -> AsyncIterator[str]:
    """Create a database (empty, or a copy of ``template``), give its DSN, and drop it afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = database_dsn(dsn, "postgres")
    await _run(admin, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield database_dsn(dsn, name)
    finally:
        await _run(admin, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def migrated_template(dsn: str) -> Iterator[str]:
    """Make a database with the whole schema that belongs to no server yet, and give its name."""
    name = f"migrated_{os.getpid()}_{next(_numbers)}"
    admin = database_dsn(dsn, "postgres")

    async def make() -> None:
        await _run(admin, f"CREATE DATABASE {name} TEMPLATE template0")
        database = Database({"dsn": database_dsn(dsn, name)}, size=1)
        try:
            await migrate(database, "nobody.example")
            await database.execute("DELETE FROM server")
        finally:
            await database.close()

    asyncio.run(make())
    try:
        yield name
    finally:
        asyncio.run(_run(admin, f"DROP DATABASE {name} WITH (FORCE)"))


async def _run(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
