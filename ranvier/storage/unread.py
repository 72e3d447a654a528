"""How far users have read, and since when they are in rooms: what unread counts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database

_MAX_CHANGES: Final = 20

_READ = """
SELECT room_id, thread_id, max(event_pos) AS pos FROM receipts
WHERE user_id = $1 AND room_id = ANY ($2) AND receipt_type IN ('m.read', 'm.read.private')
GROUP BY room_id, thread_id
"""
_MEMBER_CHANGES = f"""
SELECT w.room_nid, d.pos, e.pdu FROM unnest($2::bigint[]) AS w (room_nid)
CROSS JOIN LATERAL (
    SELECT pos, event_nid FROM state_deltas
    WHERE room_nid = w.room_nid AND type = 'm.room.member' AND state_key = $1
    ORDER BY pos DESC LIMIT {_MAX_CHANGES}
) d LEFT JOIN events e ON e.event_nid = d.event_nid
ORDER BY w.room_nid, d.pos DESC
"""
_BEFORE = """
SELECT e.event_nid FROM unnest($1::bigint[]) AS w (room_nid)
CROSS JOIN LATERAL (
    SELECT event_nid, pos FROM events
    WHERE room_nid = w.room_nid AND pos < $2 AND pos > 0 AND NOT rejected AND NOT soft_failed
    ORDER BY pos DESC LIMIT $3
) e ORDER BY e.pos DESC LIMIT $3
"""


class ReadMark(NamedTuple):
    """A user has read a thread up to ``pos``; ``thread_id`` is empty for an unthreaded receipt, or main."""

    room_id: str
    thread_id: str
    pos: int


class MemberChange(NamedTuple):
    """A member event of a user at ``pos``; None if it was taken away."""

    room_nid: int
    pos: int
    pdu: bytes | None


class UnreadStore:
    """Read what unread counts begin with, for many rooms at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_marks(self, user_id: str, room_ids: Sequence[str]) -> list[ReadMark]:
        """Give how far a user has read, by the receipt that is further ahead, public or private."""
        return [ReadMark(*record) for record in await self._database.fetch(_READ, user_id, room_ids)]

    async def member_changes(self, user_id: str, room_nids: Sequence[int]) -> list[MemberChange]:
        """Give the last changes of a user's membership in each room, the newest first."""
        return [MemberChange(*r) for r in await self._database.fetch(_MEMBER_CHANGES, user_id, room_nids)]

    async def newest_before(self, room_nids: Sequence[int], pos: int, limit: int) -> list[int]:
        """Give the event_nid of the newest events of some rooms before a position, the newest first."""
        return [r["event_nid"] for r in await self._database.fetch(_BEFORE, room_nids, pos, limit)]
