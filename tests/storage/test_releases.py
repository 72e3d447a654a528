"""Two releases side by side: what an earlier one asks of the database is there on today's schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest

from ranvier.storage.database import Connection
from ranvier.storage.migrations import migration_files
from tests.core import running_core
from tests.storage.release_record import (
    Release,
    contradictions,
    migrations,
    recorded,
    release_now,
    statements,
    tables,
)

RELEASES = recorded()
MIGRATIONS_TABLE = """
CREATE TABLE schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())
"""
CONTRACTIONS = [
    ("ALTER TABLE accounts RENAME TO users", "accounts"),
    ("ALTER TABLE presence RENAME COLUMN status_msg TO status", "presence.status_msg is gone"),
    ("ALTER TABLE presence DROP COLUMN status_msg", "presence._GET"),
    ("ALTER TABLE log_head ALTER COLUMN pos TYPE numeric", "log._HEAD: takes and gives"),
    ("ALTER TABLE presence ADD COLUMN since bigint NOT NULL", "presence.since is new"),
    ("ALTER TABLE presence ALTER COLUMN status_msg SET NOT NULL", "presence.status_msg is"),
    ("ALTER FUNCTION log_append RENAME TO log_add", "log._APPEND"),
]
EXPANSIONS = [
    "ALTER TABLE presence ADD COLUMN since bigint",
    "ALTER TABLE presence ADD COLUMN since bigint NOT NULL DEFAULT 0",
    "CREATE TABLE something_new (a text NOT NULL)",
    "ALTER TABLE presence ALTER COLUMN last_active_ts DROP NOT NULL",
]


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    """Connect as a worker does."""
    connection: Connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def test_there_is_something_to_hold_this_release_to() -> None:
    """The tests here would pass because they look at nothing."""
    assert len(statements()) > 200
    assert RELEASES
    assert all(len(release.statements) > 200 and len(release.tables) > 20 for release in RELEASES)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
async def test_workers_of_an_earlier_release_run_on_the_schema_of_this_one(
    database: str, release: Release
) -> None:
    """In an update without a pause the workers not yet updated would fail from the first new one's start."""
    async with connected(database) as connection:
        assert await contradictions(connection, release) == [], (
            "expand only, and contract when nobody runs that release any more (if it is not out yet: "
            "python -m tests.storage.record_release --again)"
        )


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
async def test_a_database_of_an_earlier_release_is_brought_up_to_date(
    database: str, empty_database: str, release: Release
) -> None:
    """Who updates would have another schema than who begins today, and something would work for one only."""
    async with connected(database) as connection:
        begun_today = await tables(connection)
    async with connected(empty_database) as older:
        await older.execute(MIGRATIONS_TABLE)
        for name, sql in migration_files():
            if name in release.migrations:
                await older.execute(sql)
                await older.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
        assert await tables(older) == release.tables
        # A worker of that release runs, with statements prepared, while a newer one brings its schema.
        head = await older.prepare(release.statements["log._HEAD"].sql)
        async with running_core(empty_database) as core:
            await core.create_room()
            assert await head.fetchval() == core.tail.pos
        assert await tables(older) == begun_today
        assert await contradictions(older, release) == []


@pytest.mark.parametrize(("change", "told"), CONTRACTIONS)
async def test_what_an_older_worker_would_miss_is_found(database: str, change: str, told: str) -> None:
    """A migration that takes something away would be found by an administrator in the middle of an update."""
    async with connected(database) as connection:
        release = await release_now(connection, "before")
        assert await contradictions(connection, release) == []
        await connection.execute(change)
        found = await contradictions(connection, release)
        assert any(told in it for it in found), found


@pytest.mark.parametrize("change", EXPANSIONS)
async def test_what_an_older_worker_does_not_know_is_no_matter(database: str, change: str) -> None:
    """Nobody could add anything any more."""
    async with connected(database) as connection:
        release = await release_now(connection, "before")
        await connection.execute(change)
        assert await contradictions(connection, release) == []


async def test_a_migration_that_was_released_is_never_another_one(database: str) -> None:
    """Whoever applied it before would lack what it says now, and nothing would ever bring it."""
    async with connected(database) as connection:
        release = await release_now(connection, "before")
        name = next(iter(migrations()))
        edited = msgspec.structs.replace(release, migrations={**release.migrations, name: "0" * 64})
        removed = msgspec.structs.replace(release, migrations={**release.migrations, "0000_gone": "0" * 64})
        assert await contradictions(connection, edited) == [
            f"the migration {name} was released and is another one now"
        ]
        assert await contradictions(connection, removed) == [
            "the migration 0000_gone was released and is another one now"
        ]
