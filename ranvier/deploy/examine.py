"""Examine a server as an administrator would, from its files to its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from ranvier.deploy.check_answers import check_answers
from ranvier.deploy.check_config import check_config
from ranvier.deploy.check_database import check_database
from ranvier.deploy.check_files import check_files
from ranvier.deploy.check_redis import check_redis
from ranvier.deploy.check_workers import check_workers
from ranvier.deploy.findings import Finding, error
from ranvier.deploy.scene import Scene
from ranvier.storage.database import Database, DatabaseUnavailable
from ranvier.storage.database_facts import read_facts

_FAILED = (DatabaseUnavailable, asyncpg.PostgresError)


async def examine(scene: Scene) -> AsyncIterator[Finding]:
    """Give what is found, in the order in which it is looked at."""
    for finding in (*check_config(scene), *check_files(scene)):
        yield finding
    async for finding in check_redis(scene):
        yield finding
    async for finding in _with_database(scene):
        yield finding
    async for finding in check_answers(scene):
        yield finding


async def _with_database(scene: Scene) -> AsyncIterator[Finding]:
    if scene.dsn is None:
        yield error("database-down", "PostgreSQL does not run", "start the server, which starts its own")
        async for finding in check_workers(scene, None):
            yield finding
        return
    async with _database(scene.dsn) as database:
        has_log = False
        try:
            async for finding in check_database(scene, database):
                yield finding
            has_log = (await read_facts(database)).has_schema
        except _FAILED as failed:
            yield _unusable(failed)
        try:
            async for finding in check_workers(scene, database if has_log else None):
                yield finding
        except _FAILED as failed:
            yield _unusable(failed)


def _unusable(failed: Exception) -> Finding:
    return error(
        "database-down",
        f"the database cannot be used: {failed.__cause__ or failed}",
        "see whether PostgreSQL runs, and whether database.args name its socket folder, user and database",
    )


@asynccontextmanager
async def _database(dsn: str) -> AsyncIterator[Database]:
    database = Database({"dsn": dsn}, size=1)
    try:
        yield database
    finally:
        await database.close()
