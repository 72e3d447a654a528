"""User-interactive authentications that are under way, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ranvier.storage.database import Database

_START = "INSERT INTO uia_sessions (session_hash, operation, created_ts, body) VALUES ($1, $2, $3, $4)"
_GET = """
SELECT operation, created_ts, completed, registration_token, body FROM uia_sessions WHERE session_hash = $1
"""
_COMPLETE = """
UPDATE uia_sessions SET completed = $2, registration_token = coalesce($3, registration_token)
WHERE session_hash = $1
"""
_FINISH = "DELETE FROM uia_sessions WHERE session_hash = $1 RETURNING true"
_SWEEP = "DELETE FROM uia_sessions WHERE created_ts < $1"
_PENDING = "SELECT count(*) FROM uia_sessions WHERE registration_token = $1 AND created_ts >= $2"


class UiaSession(msgspec.Struct, frozen=True, kw_only=True):
    """One authentication under way; see the table ``uia_sessions``."""

    operation: str
    created_ts: int
    completed: tuple[str, ...]
    registration_token: str | None
    body: bytes | None


class UiaSessionStore:
    """Read and write the table ``uia_sessions``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, session_hash: bytes, operation: str, now_ms: int, body: bytes | None) -> None:
        """Begin a session."""
        await self._database.execute(_START, session_hash, operation, now_ms, body)

    async def get(self, session_hash: bytes) -> UiaSession | None:
        """Give a session."""
        record = await self._database.fetchrow(_GET, session_hash)
        if record is None:
            return None
        fields = dict(record)
        return UiaSession(**{**fields, "completed": tuple(fields["completed"])})

    async def complete(
        self, session_hash: bytes, completed: Sequence[str], registration_token: str | None
    ) -> None:
        """Note the stages that were passed."""
        await self._database.execute(_COMPLETE, session_hash, list(completed), registration_token)

    async def finish(self, session_hash: bytes) -> bool:
        """Use a session up; False if somebody else did so first."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_FINISH, session_hash))

    async def pending(self, registration_token: str, since_ts: int) -> int:
        """Count the sessions that passed with a registration token and have not made their account yet."""
        count: int = await self._database.fetchval(_PENDING, registration_token, since_ts)
        return count

    async def sweep(self, before_ts: int) -> int:
        """Remove the sessions begun before a time in milliseconds; gives how many."""
        return await self._database.execute(_SWEEP, before_ts)
