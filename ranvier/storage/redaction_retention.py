"""Storing redacted events in their redacted form, along the log, by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ranvier.storage.database import Connection, Database

# A worker's clock may have been wrong once: all that was redacted until then would seem to be that old.
_NOW_MS = "(extract(epoch FROM now()) * 1000)::bigint"
_NOTE_TIME = f"""
INSERT INTO log_times (pos, ts) SELECT pos, {_NOW_MS} FROM log_head ON CONFLICT (pos) DO NOTHING
"""
_REACHED = f"SELECT max(pos) FROM log_times WHERE ts <= {_NOW_MS} - $1::bigint"
_FORGET_TIMES = "DELETE FROM log_times WHERE pos < $1"
_PROGRESS = "SELECT pos FROM redaction_progress"
_ADVANCE = "UPDATE redaction_progress SET pos = $1"
# By the redaction, and by the redacted event where that came later.
_BY_REDACTION = """
SELECT x.pos AS found_at, t.event_nid, t.type, t.state_key, r.version AS version_id, t.pdu
FROM events x JOIN events t ON t.redacted_by = x.event_nid JOIN rooms r ON r.room_nid = t.room_nid
WHERE x.type = 'm.room.redaction' AND x.pos IS NOT NULL AND x.pos > $1 AND x.pos <= $2
ORDER BY x.pos LIMIT $3
"""
_BY_TARGET = """
SELECT t.pos AS found_at, t.event_nid, t.type, t.state_key, r.version AS version_id, t.pdu
FROM events t JOIN rooms r ON r.room_nid = t.room_nid
WHERE t.redacted_by IS NOT NULL AND t.pos > $1 AND t.pos <= $2 ORDER BY t.pos LIMIT $3
"""
_REPLACE = """
UPDATE events e SET pdu = n.pdu FROM unnest($1::bigint[], $2::bytea[]) AS n (event_nid, pdu)
WHERE e.event_nid = n.event_nid AND e.redacted_by IS NOT NULL
"""


class RedactedEvent(NamedTuple):
    """An event that was redacted, as it is stored; ``found_at`` is where in the log that is told."""

    found_at: int
    event_nid: int
    type: str
    state_key: str | None
    version_id: str
    pdu: bytes


class RedactionRetentionStore:
    """Find redacted events along the log, and replace what is stored of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note_time(self) -> None:
        """Note where the log is now."""
        await self._database.execute(_NOTE_TIME)

    async def reached(self, ms_ago: int) -> int | None:
        """Give a position that the log had some time ago, about; None where that is not known."""
        pos: int | None = await self._database.fetchval(_REACHED, ms_ago)
        return pos

    async def progress(self) -> int:
        """Give the position up to which all is done."""
        pos: int = await self._database.fetchval(_PROGRESS)
        return pos

    async def redacted(self, after: int, upto: int, limit: int) -> tuple[list[RedactedEvent], int]:
        """Give redacted events between two positions, and up to which position that is all of them."""
        found: list[RedactedEvent] = []
        for statement in (_BY_REDACTION, _BY_TARGET):
            some = [RedactedEvent(*r) for r in await self._database.fetch(statement, after, upto, limit)]
            found.extend(some)
            if len(some) == limit:
                upto = min(upto, some[-1].found_at)
        return found, upto

    async def replace(self, connection: Connection, pdus: Sequence[tuple[int, bytes]], upto: int) -> None:
        """Store redacted forms, and that all is done up to a position."""
        await connection.execute(_REPLACE, [nid for nid, _ in pdus], [pdu for _, pdu in pdus])
        await connection.execute(_ADVANCE, upto)
        await connection.execute(_FORGET_TIMES, upto)
