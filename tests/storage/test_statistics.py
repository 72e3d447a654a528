"""What PostgreSQL tells of itself."""

from __future__ import annotations

import asyncpg

from ranvier.storage.database import Database
from ranvier.storage.statistics import read_statistics


async def test_connections_of_other_programs_count(database: str) -> None:
    """The page would show plenty of connections where other programs have taken almost all."""
    others = [await asyncpg.connect(database) for _ in range(5)]
    await others[0].execute("CREATE ROLE plain LOGIN; GRANT SELECT ON log_head TO plain")
    own = Database({"dsn": database, "user": "plain"}, size=1)
    try:
        assert (await read_statistics(own)).connections >= 6
    finally:
        await own.close()
        await others[0].execute("DROP OWNED BY plain; DROP ROLE plain")
        for other in others:
            await other.close()
