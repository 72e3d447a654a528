"""Can the database be reached, and is it one that a server may be trusted to?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

from ranvier.deploy.clocks import check_clock
from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.scene import Scene
from ranvier.storage.database import Database
from ranvier.storage.database_facts import DatabaseFacts, applied_migrations, owner, read_facts
from ranvier.storage.migrations import foreign_table, migration_files

OLDEST: Final = 140000
_SAFE_LOCALES: Final = ("C", "POSIX", "C.UTF-8", "C.UTF8", "C.utf8", "ucs_basic")
_RESERVED_CONNECTIONS: Final = 3


async def check_database(scene: Scene, database: Database) -> AsyncIterator[Finding]:
    """Ask PostgreSQL about itself and about the server's tables. Raises what the database raises."""
    before_ms = scene.now_ms()
    facts = await read_facts(database)
    yield ok("database", f"PostgreSQL {facts.version} answers")
    for finding in (
        *check_clock("PostgreSQL", facts.now_ms, before_ms, scene.now_ms()),
        *_kind(facts),
        *_connections(scene, facts),
    ):
        yield finding
    if not facts.has_schema:
        yield _unused(await foreign_table(database))
        return
    name = await owner(database)
    expected = scene.config.server.server_name
    if name not in (None, expected):
        yield error(
            "database-owner",
            f"the database belongs to the server {name}, and this one is {expected}",
            "correct server_name, or give this server a database of its own",
        )
    for finding in _schema(await applied_migrations(database)):
        yield finding


def _unused(table: str | None) -> Finding:
    if table is None:
        return note("schema", "the database is empty", "the first worker that starts makes its tables")
    return error(
        "database-owner",
        f"the database is another program's: it has the table {table}, and none of Ranvier's",
        "give the server an empty one (database.args.dbname)",
    )


def _kind(facts: DatabaseFacts) -> Iterator[Finding]:
    if facts.version_num < OLDEST:
        yield error(
            "database-version", f"PostgreSQL {facts.version} is too old", "upgrade to PostgreSQL 14 or newer"
        )
    if facts.encoding != "UTF8":
        yield error(
            "database-encoding",
            f"the database has the encoding {facts.encoding}, which cannot hold every message",
            "make it anew: createdb --encoding=UTF8 --locale=C --template=template0, and copy the data",
        )
    for locale in sorted({facts.collate, facts.ctype} - set(_SAFE_LOCALES)):
        yield warning(
            "database-locale",
            f"the database has the locale {locale}: an update of the system can change its order and "
            "silently break indexes",
            "make it anew with --locale=C --template=template0 and copy the data, or REINDEX after updates",
        )
    if not facts.is_durable:
        yield error(
            "database-durability",
            "PostgreSQL does not wait for the disk, so a power cut loses what was answered",
            "set fsync and synchronous_commit to on",
        )
    if not facts.writes_full_pages:
        yield note(
            "database-full-pages",
            "PostgreSQL has full_page_writes off: that is good on a file system that never leaves half of a "
            "page, such as ZFS; on others a power cut destroys tables",
            "set full_page_writes to on, unless it is such a file system",
        )


def _connections(scene: Scene, facts: DatabaseFacts) -> Iterator[Finding]:
    wanted = sum(it.config.database.max_connections for it in scene.processes if it.config.database)
    if wanted > facts.max_connections - _RESERVED_CONNECTIONS:
        yield warning(
            "database-connections",
            f"the workers may want {wanted} connections, and PostgreSQL gives {facts.max_connections}",
            "raise max_connections of PostgreSQL, or lower database.args.cp_max",
        )


def _schema(applied: set[str]) -> Iterator[Finding]:
    known = {name for name, _ in migration_files()}
    missing, newer = known - applied, applied - known
    if missing:
        yield warning(
            "schema",
            f"{len(missing)} schema migrations were not applied yet, first {min(missing)}",
            "restart one worker of this version; it applies them",
        )
    if newer:
        yield note("schema", f"the schema is of a newer version, with {min(newer)}")
