"""Storing the state of a room ahead of the commit that makes the room visible."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ranvier.spec.errors import MatrixError
from ranvier.storage.database import Database
from ranvier.wire.log_rows import EventRow

_PAGE: Final = 1000

_CLAIM_NID = """
WITH made AS (
    INSERT INTO room_nids (room_id, room_nid) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING room_nid
)
SELECT coalesce((SELECT room_nid FROM rooms WHERE room_id = $1), (SELECT room_nid FROM made),
                (SELECT room_nid FROM room_nids WHERE room_id = $1))
"""
_IS_BEING_REMOVED = "SELECT EXISTS (SELECT FROM purged_rooms WHERE room_id = $1)"
_LOCK = "SELECT pg_try_advisory_lock($1)"
_UNLOCK = "SELECT pg_advisory_unlock($1)"
_CLEAR = """
WITH gone AS (DELETE FROM current_state WHERE room_nid = $1)
DELETE FROM state_deltas WHERE room_nid = $1
"""
_STAGE = """
WITH staged AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::text[])
        AS s (type, state_key, event_nid, membership)
), current AS (
    INSERT INTO current_state (room_nid, type, state_key, event_nid, membership)
    SELECT $1, type, state_key, event_nid, membership FROM staged
)
INSERT INTO state_deltas (pos, room_nid, type, state_key, event_nid, prev_nid)
SELECT 0, $1, type, state_key, event_nid, NULL FROM staged
"""


class RoomImportStore:
    """Keep what a room that is not visible yet will be made of."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def room_nid(self, room_id: str, unused_nid: int) -> int:
        """Give the integer of a room, known or not; ``unused_nid`` becomes it if there was none.

        Raises 503 while what was known of the room before is still being removed.
        """
        if await self._database.fetchval(_IS_BEING_REMOVED, room_id):
            raise MatrixError("M_UNKNOWN", 503, "This room is just being removed from here; try again")
        nid: int | None = None
        while nid is None:  # another process made it after this statement began
            nid = await self._database.fetchval(_CLAIM_NID, room_id, unused_nid)
        return nid

    @asynccontextmanager
    async def alone(self, room_nid: int) -> AsyncIterator[None]:
        """Be the only one that imports a room; 503 if somebody else is. A lost connection ends it."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(_LOCK, room_nid):
                raise MatrixError("M_UNKNOWN", 503, "This room is being joined by another request; try again")
            try:
                yield
            finally:
                if not connection.is_closed():
                    await connection.fetchval(_UNLOCK, room_nid)

    async def stage_state(self, room_nid: int, rows: Sequence[EventRow]) -> None:
        """Store the current state of a room that has no row in ``rooms``, as it was at position 0.

        What an earlier import left that was not finished is removed. Nobody sees any of it before the room
        is there.
        """
        await self._database.execute(_CLEAR, room_nid)
        for start in range(0, len(rows), _PAGE):
            page = rows[start : start + _PAGE]
            await self._database.execute(
                _STAGE,
                room_nid,
                [row.type for row in page],
                [row.state_key for row in page],
                [row.event_nid for row in page],
                [row.membership for row in page],
            )
