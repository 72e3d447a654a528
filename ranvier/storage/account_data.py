"""Account data: what users keep for themselves, global and by room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import asyncpg

from ranvier.storage.database import Database

ChangedMeanwhile: Final = asyncpg.SerializationError
"""Raised by an append whose row was computed on what is no longer the newest (see the schema)."""

_GET = (
    "SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3"
)
_GLOBAL = "SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1 AND room_id = ''"
_OF_ROOMS = """
SELECT room_id, type, content, pos FROM account_data WHERE user_id = $1 AND room_id = ANY ($2)
"""
_BETWEEN = """
SELECT room_id, type, content, pos FROM account_data
WHERE user_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos
"""
_TOTALS = "SELECT count(*), coalesce(sum(octet_length(content)), 0) FROM account_data WHERE user_id = $1"


class AccountDataRow(NamedTuple):
    """One piece; ``room_id`` is empty for global account data, ``content`` a JSON object."""

    room_id: str
    type: str
    content: bytes
    pos: int


class AccountDataStore:
    """Read account data. It is written through the log (kind ``account_data``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str, room_id: str, type: str) -> AccountDataRow | None:
        """Read one piece; ``room_id`` is empty for global account data."""
        record = await self._database.fetchrow(_GET, user_id, room_id, type)
        return None if record is None else AccountDataRow(*record)

    async def of_user(self, user_id: str) -> list[AccountDataRow]:
        """Read all global account data of a user."""
        return [AccountDataRow(*record) for record in await self._database.fetch(_GLOBAL, user_id)]

    async def of_rooms(self, user_id: str, room_ids: Sequence[str]) -> list[AccountDataRow]:
        """Read a user's account data of some rooms."""
        return [AccountDataRow(*r) for r in await self._database.fetch(_OF_ROOMS, user_id, room_ids)]

    async def between(self, user_id: str, *, after: int, upto: int) -> list[AccountDataRow]:
        """Read what changed last between two log positions, global and of all rooms."""
        return [AccountDataRow(*r) for r in await self._database.fetch(_BETWEEN, user_id, after, upto)]

    async def totals(self, user_id: str) -> tuple[int, int]:
        """Give how many pieces a user has and how many bytes they are together."""
        record = await self._database.fetchrow(_TOTALS, user_id)
        assert record is not None
        return record[0], record[1]
