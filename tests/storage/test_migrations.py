"""Bringing the schema up to date."""

from __future__ import annotations

import asyncio

import pytest

from ranvier.storage import migrations
from ranvier.storage.database import Database


async def test_a_migration_may_take_longer_than_a_statement_of_a_request(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of a large server would be broken off and begun anew for ever, and so would who waits."""
    files = [*migrations.migration_files(), ("9999_long", "SELECT pg_sleep(3)")]
    monkeypatch.setattr(migrations, "migration_files", lambda: files)
    databases = [Database({"dsn": empty_database, "command_timeout": 2}, size=1) for _ in range(2)]
    await asyncio.gather(*(migrations.migrate(it, "example.org") for it in databases))
    assert await databases[0].fetchval("SELECT count(*) FROM schema_migrations") == len(files)
    for database in databases:
        await database.close()


async def test_workers_that_start_at_once_migrate_once(empty_database: str) -> None:
    """Two workers on a new database would get into each other's way, and one or both not start."""
    databases = [Database({"dsn": empty_database}, size=1) for _ in range(3)]
    try:
        await asyncio.gather(*(migrations.migrate(it, "example.org") for it in databases))
        applied = await databases[0].fetch("SELECT name FROM schema_migrations ORDER BY applied_at, name")
        assert [record["name"] for record in applied] == [name for name, _ in migrations.migration_files()]
    finally:
        for database in databases:
            await database.close()
