"""Presence: status messages, and who was connected when the server stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database

MAX_OFFLINE: Final = 2000
"""Offline users that one initial answer tells of."""

_COLUMNS = "p.user_id, p.status_msg, p.last_active_ts, p.process"
_GET = f"SELECT {_COLUMNS} FROM presence p WHERE p.user_id = $1"
_OF_PROCESS = (
    f"SELECT {_COLUMNS} FROM presence p WHERE p.process = $1 ORDER BY p.last_active_ts DESC LIMIT $2"
)
# Each name once, without reading the rows between: one step in the index for each name.
_PROCESSES = """
WITH RECURSIVE names AS (
    SELECT min(process) AS process FROM presence WHERE process IS NOT NULL
    UNION ALL
    SELECT (SELECT min(p.process) FROM presence p WHERE p.process > names.process)
    FROM names WHERE names.process IS NOT NULL)
SELECT process FROM names WHERE process IS NOT NULL
"""
_CLAIM = f"""
UPDATE presence p SET process = $2 WHERE p.user_id IN (
    SELECT user_id FROM presence WHERE process = $1 LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}
"""
_LEFT = "UPDATE presence SET process = NULL WHERE user_id = ANY ($1) AND process = $2"
# A worker may see an erased user go after all that was known of them was removed.
_PUT = """
INSERT INTO presence (user_id, status_msg, last_active_ts, process)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS n (user_id)
    WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.user_id = n.user_id AND a.erased)
    ON CONFLICT (user_id) DO UPDATE SET status_msg = excluded.status_msg,
        last_active_ts = excluded.last_active_ts, process = excluded.process
"""
_SHARING = """
SELECT DISTINCT s.state_key FROM current_state s JOIN rooms r USING (room_nid)
WHERE r.room_id = ANY ($1) AND s.type = 'm.room.member' AND s.membership = 'join' AND s.state_key = ANY ($2)
"""
_OFFLINE_SHARING = f"""
SELECT {_COLUMNS} FROM presence p WHERE p.process IS NULL AND EXISTS (
    SELECT FROM current_state s JOIN rooms r USING (room_nid)
    WHERE s.state_key = p.user_id AND s.type = 'm.room.member' AND s.membership = 'join'
      AND r.room_id = ANY ($1))
ORDER BY p.last_active_ts DESC LIMIT {MAX_OFFLINE}
"""


class PresenceRow(NamedTuple):
    """One row of the table; ``process`` is None while the user is offline."""

    user_id: str
    status_msg: str | None
    last_active_ts: int
    process: str | None


class PresenceStore:
    """Read and write what is kept of presence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str) -> PresenceRow | None:
        """Give the row of a user."""
        record = await self._database.fetchrow(_GET, user_id)
        return None if record is None else PresenceRow(*record)

    async def of_process(self, process: str, *, limit: int) -> list[PresenceRow]:
        """Give the users that were connected to a process."""
        return [PresenceRow(*record) for record in await self._database.fetch(_OF_PROCESS, process, limit)]

    async def processes(self) -> list[str]:
        """Give the processes that users are connected to, as far as is written."""
        return [record["process"] for record in await self._database.fetch(_PROCESSES)]

    async def claim(self, process: str, by: str, *, limit: int) -> list[PresenceRow]:
        """Make some users of one process another's and give them; nobody else is given the same."""
        # Not by ``fetch``, which repeats a statement whose answer was lost: what was claimed would be gone.
        async with self._database.connection() as connection:
            return [PresenceRow(*record) for record in await connection.fetch(_CLAIM, process, by, limit)]

    async def left(self, user_ids: Sequence[str], process: str) -> None:
        """Note that users who were a process's are offline; those who are another's by now stay it."""
        await self._database.execute(_LEFT, user_ids, process)

    async def put(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows, one for each user; none of those who were erased."""
        columns = [[row[index] for row in rows] for index in range(4)]
        await self._database.execute(_PUT, *columns)

    async def sharing(self, room_ids: Sequence[str], user_ids: Sequence[str]) -> set[str]:
        """Give those of some users who are joined to one of some rooms."""
        records = await self._database.fetch(_SHARING, room_ids, user_ids)
        return {record["state_key"] for record in records}

    async def offline_sharing(self, room_ids: Sequence[str]) -> list[PresenceRow]:
        """Give the offline users who are joined to one of some rooms, the last active first."""
        return [PresenceRow(*record) for record in await self._database.fetch(_OFFLINE_SHARING, room_ids)]
