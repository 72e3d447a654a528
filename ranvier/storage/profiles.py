"""Profiles, and the users whose rooms are still to be told of a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ranvier.storage.database import Database

_GET = """
SELECT a.user_id, p.document, coalesce(p.pos, 0) AS pos, a.deactivated
FROM accounts a LEFT JOIN profiles p USING (user_id) WHERE a.user_id = $1
"""
_CHANGED = """
SELECT c.user_id, h.pos AS head FROM profile_changes c, log_head h ORDER BY c.pos LIMIT 1000
"""
_TOLD = "DELETE FROM profile_changes WHERE user_id = $1 AND pos <= $2"
_TELL_AGAIN = """
INSERT INTO profile_changes (user_id, pos) SELECT user_id, pos FROM profiles WHERE user_id = $1
ON CONFLICT DO NOTHING
"""
_PUBLIC_STATE = """
SELECT e.pdu FROM current_state m
JOIN current_state s ON s.room_nid = m.room_nid AND s.state_key = ''
    AND s.type IN ('m.room.join_rules', 'm.room.history_visibility')
JOIN events e ON e.event_nid = s.event_nid
WHERE m.type = 'm.room.member' AND m.state_key = $1 AND m.membership = 'join' LIMIT $2
"""


class StoredProfile(NamedTuple):
    """The profile of an account: ``document`` is None where no field was set; ``pos`` its last change."""

    document: bytes | None
    pos: int
    deactivated: bool


class ProfileStore:
    """Read profiles. They are written through the log (kind ``profile``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str) -> StoredProfile | None:
        """Give the profile of a user of ours; None for who has no account."""
        record = await self._database.fetchrow(_GET, user_id)
        if record is None:
            return None
        return StoredProfile(record["document"], record["pos"], record["deactivated"])

    async def to_be_told(self) -> tuple[list[str], int]:
        """Give the users whose name or avatar is not in all their rooms, as of which position of the log."""
        records = await self._database.fetch(_CHANGED)
        return [record["user_id"] for record in records], records[0]["head"] if records else 0

    async def set_told(self, user_id: str, pos: int) -> None:
        """Note that the profile of position ``pos`` is in all rooms of the user."""
        await self._database.execute(_TOLD, user_id, pos)

    async def tell_again(self, user_id: str) -> None:
        """Note that the profile of a user may not be in all their rooms."""
        await self._database.execute(_TELL_AGAIN, user_id)

    async def visibility_of_rooms(self, user_id: str, limit: int) -> Sequence[bytes]:
        """Give the PDUs of the join rules and history visibilities of rooms that a user is joined to."""
        return [record["pdu"] for record in await self._database.fetch(_PUBLIC_STATE, user_id, limit)]
