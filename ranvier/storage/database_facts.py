"""What PostgreSQL says of itself and of a server's database, for those who look whether all is well."""

from __future__ import annotations

from typing import NamedTuple

from ranvier.storage.database import Database

_FACTS = """
SELECT current_setting('server_version_num')::int AS version_num,
       current_setting('server_version') AS version,
       pg_encoding_to_char(encoding) AS encoding, datcollate AS collate, datctype AS ctype,
       current_setting('max_connections')::int AS max_connections,
       current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off' AS is_durable,
       current_setting('full_page_writes') = 'on' AS writes_full_pages,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
       to_regclass('log_head') IS NOT NULL AS has_schema
FROM pg_database WHERE datname = current_database()
"""
_MIGRATIONS = "SELECT name FROM schema_migrations"
_SERVER = "SELECT server_name FROM server"


class DatabaseFacts(NamedTuple):
    """One look at a database. ``collate`` and ``ctype`` are its locale, ``now_ms`` its clock."""

    version_num: int
    version: str
    encoding: str
    collate: str
    ctype: str
    max_connections: int
    is_durable: bool
    writes_full_pages: bool
    now_ms: int
    has_schema: bool


async def read_facts(database: Database) -> DatabaseFacts:
    """Read the facts."""
    record = await database.fetchrow(_FACTS)
    assert record is not None, "there is a row for the database that one is connected to"
    return DatabaseFacts(**record)


async def applied_migrations(database: Database) -> set[str]:
    """Give the names of the migrations that were applied; there must be a schema."""
    return {record["name"] for record in await database.fetch(_MIGRATIONS)}


async def owner(database: Database) -> str | None:
    """Give the name of the server that the database belongs to; there must be a schema."""
    name: str | None = await database.fetchval(_SERVER)
    return name
