"""Filters that clients uploaded."""

from __future__ import annotations

from hashlib import sha256

from ranvier.storage.database import Database

_FIND = "SELECT filter_id FROM filters WHERE user_id = $1 AND digest = $2"
_COUNT = "SELECT count(*) FROM filters WHERE user_id = $1"
_INSERT = """
INSERT INTO filters (user_id, digest, definition) VALUES ($1, $2, $3)
ON CONFLICT (user_id, digest) DO UPDATE SET digest = excluded.digest RETURNING filter_id
"""
_GET = "SELECT definition FROM filters WHERE filter_id = $1 AND user_id = $2"


class FilterStore:
    """Keep filters, equal ones of a user once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, user_id: str, definition: bytes) -> int | None:
        """Give the id of a user's filter with this definition (canonical JSON)."""
        filter_id: int | None = await self._database.fetchval(_FIND, user_id, sha256(definition).digest())
        return filter_id

    async def count(self, user_id: str) -> int:
        """Give how many filters a user has."""
        count: int = await self._database.fetchval(_COUNT, user_id)
        return count

    async def add(self, user_id: str, definition: bytes) -> int:
        """Store a filter and give its id, which is that of an equal one if there is one."""
        digest = sha256(definition).digest()
        filter_id: int = await self._database.fetchval(_INSERT, user_id, digest, definition)
        return filter_id

    async def get(self, user_id: str, filter_id: int) -> bytes | None:
        """Give the definition of a user's filter."""
        definition: bytes | None = await self._database.fetchval(_GET, filter_id, user_id)
        return definition
