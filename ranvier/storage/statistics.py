"""What PostgreSQL tells of itself to people who look at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ranvier.storage.database import Database

# Of what other roles do pg_stat_activity tells nothing to an ordinary one.
_READ: Final = """
SELECT current_setting('server_version') AS version,
       current_setting('max_connections')::int AS max_connections,
       (SELECT sum(numbackends) FROM pg_stat_database)::int AS connections,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint AS started_ts,
       (SELECT pos FROM log_head) AS pos
"""
_SIZE: Final = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True)
class DatabaseStatistics:
    """PostgreSQL as it is now. ``pos`` is the head of the log, ``started_ts`` in milliseconds of 1970."""

    version: str
    max_connections: int
    connections: int
    started_ts: int
    pos: int


async def read_statistics(database: Database) -> DatabaseStatistics:
    """Read what costs next to nothing. Raises DatabaseUnavailable."""
    row = await database.fetchrow(_READ)
    assert row is not None
    version = str(row["version"]).split(" ")[0]
    return DatabaseStatistics(
        version, row["max_connections"], row["connections"], row["started_ts"], row["pos"]
    )


async def read_size(database: Database) -> int:
    """Give the size of the database in bytes: PostgreSQL looks at each of its files for it."""
    size: int = await database.fetchval(_SIZE)
    return size
