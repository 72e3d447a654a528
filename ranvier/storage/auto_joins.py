"""New users who are still to be joined to the rooms of the configuration."""

from __future__ import annotations

from ranvier.storage.database import Database

# Whoever takes a user has until the next time that they are due: a process that ends meanwhile loses nobody.
_TAKE = """
UPDATE auto_joins a SET attempts = a.attempts + 1, due_ts = $1 + least($2 * 2 ^ least(a.attempts, 20), $3)
FROM (SELECT user_id FROM auto_joins WHERE due_ts <= $1 ORDER BY due_ts LIMIT $4 FOR UPDATE SKIP LOCKED) due
WHERE a.user_id = due.user_id RETURNING a.user_id
"""
_ADD = "INSERT INTO auto_joins (user_id, due_ts) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_DONE = "DELETE FROM auto_joins WHERE user_id = $1"


class AutoJoinStore:
    """Give users to be joined to one process at a time. (``storage.accounts`` adds new ones.)"""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, now_ms: int, *, again_ms: int, most_ms: int, limit: int) -> list[str]:
        """Take users who are due; nobody else does so in the next ``again_ms``, twice that the next time.

        After many attempts it is ``most_ms``.
        """
        records = await self._database.fetch(_TAKE, now_ms, again_ms, most_ms, limit)
        return [record["user_id"] for record in records]

    async def add(self, user_id: str, now_ms: int) -> None:
        """Note that a user is to be joined."""
        await self._database.execute(_ADD, user_id, now_ms)

    async def done(self, user_id: str) -> None:
        """Forget a user who is in all rooms that they can be in."""
        await self._database.execute(_DONE, user_id)
