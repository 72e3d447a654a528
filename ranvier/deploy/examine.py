"""Examine a server as an administrator would, from its files to its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg

from ranvier.deploy.check_answers import check_answers
from ranvier.deploy.check_config import check_config
from ranvier.deploy.check_database import check_database
from ranvier.deploy.check_files import check_files
from ranvier.deploy.check_public import check_public
from ranvier.deploy.check_redis import check_redis
from ranvier.deploy.check_units import check_units
from ranvier.deploy.check_workers import check_workers
from ranvier.deploy.findings import Finding, error
from ranvier.deploy.guard import guarded_async
from ranvier.deploy.scene import Scene
from ranvier.storage.database import Database, DatabaseUnavailable
from ranvier.storage.database_facts import read_facts

_FAILED = (DatabaseUnavailable, asyncpg.PostgresError)


def examine_machine(scene: Scene) -> Iterator[Finding]:
    """Give what is found on the machine: files, groups, units. This is for root, who sees them all."""
    yield from check_files(scene)
    yield from check_units(scene)


async def examine(scene: Scene) -> AsyncIterator[Finding]:
    """Give what is found of the server itself. This is for its user: what that one may not use is found."""
    checks = [("what the web server answers", check_public(scene))]
    if scene.processes:  # else nobody knows what the server uses
        for finding in check_config(scene):
            yield finding
        checks = [
            ("Redis", check_redis(scene)),
            ("the database", _with_database(scene)),
            ("what the workers answer", check_answers(scene)),
            *checks,
        ]
    for what, found in checks:
        async for finding in guarded_async(what, found):
            yield finding


async def _with_database(scene: Scene) -> AsyncIterator[Finding]:
    if scene.dsn is None:
        if not scene.hidden:
            yield error("database-down", "PostgreSQL does not run", "start the server, which starts its own")
        async for finding in guarded_async("the workers", check_workers(scene, None)):
            yield finding
        return
    async with _database(scene.dsn) as database:
        for what, found in (("the database", check_database), ("the workers", _workers)):
            async for finding in guarded_async(what, _told_if_unusable(found(scene, database))):
                yield finding


async def _workers(scene: Scene, database: Database) -> AsyncIterator[Finding]:
    try:
        has_log = (await read_facts(database)).has_schema
    except _FAILED:
        has_log = False  # told already
    async for finding in check_workers(scene, database if has_log else None):
        yield finding


async def _told_if_unusable(found: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    try:
        async for finding in found:
            yield finding
    except _FAILED as failed:
        yield error(
            "database-down",
            f"the database cannot be used: {failed.__cause__ or failed}",
            "see whether PostgreSQL runs and database.args name its socket folder, user and database",
        )


@asynccontextmanager
async def _database(dsn: str) -> AsyncIterator[Database]:
    database = Database({"dsn": dsn}, size=1)
    try:
        yield database
    finally:
        await database.close()
