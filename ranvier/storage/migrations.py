"""Bring the schema up to date: numbered files, forward only, once, under a lock."""

from __future__ import annotations

import logging
from importlib import resources
from typing import Final

from ranvier.storage.database import Connection, Database

logger = logging.getLogger(__name__)

_LOCK = 0x52414E56  # "RANV": whoever starts first migrates, the others wait
_APPLIED = "SELECT name FROM schema_migrations"
_CREATE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
# Where 0001_log was never applied: a table that is neither ours nor an extension's.
_FOREIGN = """
SELECT min(relname::text) FROM pg_class
WHERE relnamespace = to_regnamespace(quote_ident(current_schema()))
  AND relkind IN ('r', 'p') AND relname <> 'schema_migrations' AND to_regclass('log_head') IS NULL
  AND NOT EXISTS (
      SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
  )
"""
# An index on a large table may take hours, and the others wait: broken off, it would begin anew for ever.
_PATIENT_S: Final = 30 * 86_400.0
_CATALOGS = "pg_attribute, pg_class, pg_constraint, pg_depend, pg_description, pg_index, pg_type"


class WrongServerName(Exception):
    """Say that the database belongs to a server of another name."""


class ForeignDatabase(Exception):
    """Say that the database is another program's."""


def migration_files() -> list[tuple[str, str]]:
    """Give ``(name, SQL)`` of every migration in its order."""
    folder = resources.files("ranvier.storage") / "schema"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return [(entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8")) for entry in files]


async def foreign_table(database: Database | Connection) -> str | None:
    """Give a table of another program, in a database that was never a server's; None if there is none."""
    table: str | None = await database.fetchval(_FOREIGN)
    return table


async def migrate(database: Database, server_name: str) -> None:
    """Apply what is missing, each file in a transaction of its own.

    Raises WrongServerName when the database was made for another server, ForeignDatabase when for
    another program; then nothing is changed.
    """
    async with database.connection() as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=_PATIENT_S)
        try:
            if (table := await foreign_table(connection)) is not None:
                raise ForeignDatabase(f"it has the table {table}, and none of Ranvier's")
            await connection.execute(_CREATE)
            applied = {record["name"] for record in await connection.fetch(_APPLIED)}
            for name, sql in migration_files():
                if name in applied:
                    continue
                async with connection.transaction():
                    await connection.execute(sql, timeout=_PATIENT_S)
                    await connection.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
                logger.info("Applied schema migration %s", name)
            if not applied:
                # What was made here is much for them: else they are looked through under the first load.
                # Our own tables are not: plans for empty ones would be used until they are large.
                await connection.execute(f"VACUUM (ANALYZE) {_CATALOGS}", timeout=_PATIENT_S)
            await connection.execute(
                "INSERT INTO server (server_name) VALUES ($1) ON CONFLICT DO NOTHING", server_name
            )
            owner = await connection.fetchval("SELECT server_name FROM server")
            if owner != server_name:
                raise WrongServerName(f"this database belongs to {owner!r}, not to {server_name!r}")
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
