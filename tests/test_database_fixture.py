"""The test database itself."""

from __future__ import annotations

import asyncpg


async def test_a_fresh_database_is_empty_and_utf8(empty_database: str) -> None:
    """Otherwise tests would see each other's rows, and users' texts would sort by the machine's locale."""
    connection = await asyncpg.connect(empty_database)
    try:
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        row = await connection.fetchrow(
            "SELECT pg_encoding_to_char(encoding), datcollate "
            "FROM pg_database WHERE datname = current_database()"
        )
        assert tuple(row or ()) == ("UTF8", "C")
    finally:
        await connection.close()
