"""Registration tokens in PostgreSQL."""

from __future__ import annotations

import msgspec

from ranvier.storage.database import Database

_COLUMNS = "token, uses_allowed, completed, expires_ts"
_GET = f"SELECT {_COLUMNS} FROM registration_tokens WHERE token = $1"
_LIST = f"SELECT {_COLUMNS} FROM registration_tokens ORDER BY token"
_CREATE = """
INSERT INTO registration_tokens (token, uses_allowed, expires_ts) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING true
"""
_CHANGE = "UPDATE registration_tokens SET uses_allowed = $2, expires_ts = $3 WHERE token = $1"
_DELETE = "DELETE FROM registration_tokens WHERE token = $1"


class RegistrationToken(msgspec.Struct, frozen=True, kw_only=True):
    """One token; see the table ``registration_tokens``. ``expires_ts`` is in milliseconds."""

    token: str
    uses_allowed: int | None
    completed: int
    expires_ts: int | None


class RegistrationTokenStore:
    """Read and write the table ``registration_tokens``. Using one up is part of making the account."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, token: str) -> RegistrationToken | None:
        """Give one token."""
        record = await self._database.fetchrow(_GET, token)
        return None if record is None else RegistrationToken(**record)

    async def all(self) -> list[RegistrationToken]:
        """Give every token, in order of their texts."""
        return [RegistrationToken(**record) for record in await self._database.fetch(_LIST)]

    async def create(self, token: str, uses_allowed: int | None, expires_ts: int | None) -> bool:
        """Make a token; False if there is one of this text."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_CREATE, token, uses_allowed, expires_ts))

    async def change(self, token: str, uses_allowed: int | None, expires_ts: int | None) -> bool:
        """Set the limits of a token; False if there is no such token."""
        return await self._database.execute(_CHANGE, token, uses_allowed, expires_ts) == 1

    async def delete(self, token: str) -> bool:
        """Remove a token; False if there is no such token."""
        return await self._database.execute(_DELETE, token) == 1
