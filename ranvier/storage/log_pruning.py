"""Removing old rows of the log in small pieces. The database's clock alone says what is old."""

from __future__ import annotations

from typing import Final

from ranvier.storage.database import Connection, Database

_PIECE: Final = 500
"""Each row may have 64 KiB."""

_INDEX = "transactions_by_age"
_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
_BUILD_TIMEOUT_S: Final = 6 * 3600.0

_MARK = "INSERT INTO log_marks (pos) SELECT pos FROM log_head ON CONFLICT (pos) DO NOTHING"
_REACHED = """
SELECT least(max(m.pos), h.pos - $2) FROM log_head h, log_marks m
WHERE m.ts <= now() - $1 * interval '1 second' GROUP BY h.pos
"""
_REMOVE = f"""
WITH piece AS (
    SELECT pos FROM log WHERE pos > (SELECT pos FROM log_pruned) AND pos <= $1 ORDER BY pos LIMIT {_PIECE}
), gone AS (
    DELETE FROM log USING piece WHERE log.pos = piece.pos
)
UPDATE log_pruned SET pos = CASE (SELECT count(*) FROM piece)
    WHEN {_PIECE} THEN (SELECT max(pos) FROM piece) ELSE $1 END
WHERE pos < $1 RETURNING pos < $1
"""
_FORGET_MARKS = "DELETE FROM log_marks WHERE pos < (SELECT pos FROM log_pruned)"


async def mark(connection: Connection) -> None:
    """Note where the log is now."""
    await connection.execute(_MARK)


async def reached(connection: Connection, seconds_ago: int, rows_ago: int) -> int | None:
    """Give a position that the log had some time ago, about, and some rows ago; None where none is known."""
    pos: int | None = await connection.fetchval(_REACHED, seconds_ago, rows_ago)
    return pos


async def build_index(database: Database) -> None:
    """Have the index by which old transaction ids are found, without keeping anybody from writing.

    On a large database that takes minutes. One that was broken off is built anew.
    """
    async with database.connection() as connection:
        is_valid = await connection.fetchval(_IS_VALID, _INDEX)
        if is_valid:
            return
        if is_valid is not None:
            await connection.execute(f"DROP INDEX CONCURRENTLY {_INDEX}")
        await connection.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON transactions (sent_ts)", timeout=_BUILD_TIMEOUT_S
        )


async def remove_piece(connection: Connection, upto: int) -> bool:
    """Remove some of the rows up to a position, the oldest first; False when none is left."""
    if await connection.fetchval(_REMOVE, upto):
        return True
    await connection.execute(_FORGET_MARKS)
    return False
