"""Receipts: the newest of each user, type and thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database

MAX_OTHERS: Final = 2000
"""Receipts of others that one room's initial answer tells, the newest first."""

_POSITION = """
SELECT event_pos FROM receipts WHERE room_id = $1 AND user_id = $2 AND receipt_type = $3 AND thread_id = $4
"""
_COLUMNS = "room_id, user_id, receipt_type, thread_id, event_id, ts, event_pos"
_OF_ROOMS = f"""
SELECT r.* FROM unnest($1::text[]) AS w (wanted)
CROSS JOIN LATERAL (
    (SELECT {_COLUMNS} FROM receipts WHERE room_id = wanted AND user_id = $2 AND pos <= $3)
    UNION ALL
    (SELECT {_COLUMNS} FROM receipts
     WHERE room_id = wanted AND user_id <> $2 AND receipt_type <> 'm.read.private' AND pos <= $3
     ORDER BY pos DESC LIMIT {MAX_OTHERS})
) r
"""
_BETWEEN = f"""
SELECT {_COLUMNS} FROM receipts
WHERE room_id = ANY ($1) AND pos > $3 AND pos <= $4 AND (receipt_type <> 'm.read.private' OR user_id = $2)
"""


class ReceiptRow(NamedTuple):
    """One receipt; ``thread_id`` is empty for an unthreaded one, ``ts`` in milliseconds since the epoch."""

    room_id: str
    user_id: str
    receipt_type: str
    thread_id: str
    event_id: str
    ts: int
    event_pos: int


class ReceiptStore:
    """Read receipts. They are written through the log (kind ``receipt``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def position(self, room_id: str, user_id: str, receipt_type: str, thread_id: str) -> int | None:
        """Give the position of the event that a receipt names, None where there is no such receipt."""
        pos: int | None = await self._database.fetchval(_POSITION, room_id, user_id, receipt_type, thread_id)
        return pos

    async def of_rooms(self, room_ids: Sequence[str], user_id: str, *, upto: int) -> list[ReceiptRow]:
        """Read for a user the receipts of some rooms: all of their own, and the newest of others."""
        records = await self._database.fetch(_OF_ROOMS, room_ids, user_id, upto)
        return [ReceiptRow(*record) for record in records]

    async def between(
        self, room_ids: Sequence[str], user_id: str, *, after: int, upto: int
    ) -> list[ReceiptRow]:
        """Read for a user the receipts that were sent between two log positions and are still in force."""
        records = await self._database.fetch(_BETWEEN, room_ids, user_id, after, upto)
        return [ReceiptRow(*record) for record in records]
