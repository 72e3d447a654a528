"""Whose devices changed, and who began or ceased to share rooms, for tokens older than the tail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ranvier.storage.database import Database

_SHARES = """
SELECT FROM current_state mine JOIN current_state theirs USING (room_nid)
WHERE mine.type = 'm.room.member' AND mine.state_key = $1 AND mine.membership = 'join'
  AND theirs.type = 'm.room.member' AND theirs.state_key = u.user_id AND theirs.membership = 'join'
"""
_CHANGED = f"""
SELECT u.user_id FROM device_list_changes u
WHERE u.pos > $2 AND (u.user_id = $1 OR EXISTS ({_SHARES}))
UNION
SELECT target_user_id FROM key_signatures WHERE signer_user_id = $1 AND pos > $2 AND target_user_id <> $1
"""
_SHARING = f"SELECT u.user_id FROM unnest($2::text[]) AS u (user_id) WHERE EXISTS ({_SHARES})"
_AT_ONCE = 2000
_MOVES = """
WITH own AS (
    SELECT room_nid FROM state_deltas WHERE type = 'm.room.member' AND state_key = $1 AND pos > $2
    UNION
    SELECT room_nid FROM current_state
    WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join'),
first AS (
    SELECT DISTINCT ON (d.room_nid, d.state_key) d.room_nid, d.state_key, d.prev_nid
    FROM own JOIN state_deltas d USING (room_nid)
    WHERE d.type = 'm.room.member' AND d.pos > $2 ORDER BY d.room_nid, d.state_key, d.pos)
SELECT r.room_id, f.state_key, coalesce(s.membership = 'join', false) AS joined, f.prev_nid
FROM first f JOIN rooms r USING (room_nid)
LEFT JOIN current_state s
    ON s.room_nid = f.room_nid AND s.type = 'm.room.member' AND s.state_key = f.state_key
"""


class Move(NamedTuple):
    """How a user's membership of a room changed over some time.

    ``joined`` says what it is at the end (None: the room must be asked), ``before_nid`` is the member event
    at the beginning (None: there was none, or it is not known).
    """

    room_id: str
    user_id: str
    joined: bool | None
    before_nid: int | None


class DeviceListStore:
    """Answer for any time since the server began."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def changed(self, user_id: str, after: int) -> set[str]:
        """Name those who share a room with a user, and whose keys changed after a position.

        The user counts as well, and so do those whose keys the user signed.
        """
        return {record["user_id"] for record in await self._database.fetch(_CHANGED, user_id, after)}

    async def sharing(self, user_id: str, others: Sequence[str]) -> set[str]:
        """Name those of ``others`` who share a room with a user now."""
        return {record["user_id"] for record in await self._database.fetch(_SHARING, user_id, others)}

    async def moves(self, user_id: str, after: int) -> list[Move]:
        """Give the changes of membership after a position in all rooms that a user was or is in."""
        moves: list[Move] = []
        for number, record in enumerate(await self._database.fetch(_MOVES, user_id, after), 1):
            moves.append(Move(*record))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # others get their turn
        return moves
