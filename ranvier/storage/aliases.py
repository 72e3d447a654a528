"""Room aliases of this server."""

from __future__ import annotations

from typing import NamedTuple

from ranvier.storage.database import Database

MAX_PER_ROOM = 500
CLAIM_MS = 60_000

_FIND = "SELECT alias, room_id, creator FROM room_aliases WHERE alias = $1 AND room_id IS NOT NULL"
_ROOMS_OF = "SELECT alias, room_id FROM room_aliases WHERE alias = ANY ($1) AND room_id IS NOT NULL"
_OF_ROOM = f"""
SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY created_ts, alias LIMIT {MAX_PER_ROOM}
"""
_COUNT = "SELECT count(*) FROM room_aliases WHERE room_id = $1"
_PUT = f"""
INSERT INTO room_aliases AS a (alias, room_id, creator, created_ts) VALUES ($1, $2, $3, $4)
ON CONFLICT (alias) DO UPDATE SET room_id = excluded.room_id, creator = excluded.creator,
       created_ts = excluded.created_ts
WHERE a.room_id IS NULL AND a.created_ts < excluded.created_ts - {CLAIM_MS}
"""
_SETTLE = "UPDATE room_aliases SET room_id = $2 WHERE alias = $1 AND room_id IS NULL AND creator = $3"
_UNCLAIM = "DELETE FROM room_aliases WHERE alias = $1 AND room_id IS NULL AND creator = $2"
_DELETE = "DELETE FROM room_aliases WHERE alias = $1"
_MOVE = "UPDATE room_aliases SET room_id = $2 WHERE room_id = $1"


class StoredAlias(NamedTuple):
    """One alias, the room that it names and who made it."""

    alias: str
    room_id: str
    creator: str


class AliasStore:
    """Read and write the aliases of this server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, alias: str) -> StoredAlias | None:
        """Find an alias."""
        record = await self._database.fetchrow(_FIND, alias)
        return None if record is None else StoredAlias(*record)

    async def rooms_of(self, aliases: list[str]) -> dict[str, str]:
        """Give the room that each alias names; those not known are left out."""
        return {r["alias"]: r["room_id"] for r in await self._database.fetch(_ROOMS_OF, aliases)}

    async def of_room(self, room_id: str) -> list[str]:
        """Give the aliases of a room, the oldest first."""
        return [record["alias"] for record in await self._database.fetch(_OF_ROOM, room_id)]

    async def count(self, room_id: str) -> int:
        """Give the number of aliases of a room."""
        count: int = await self._database.fetchval(_COUNT, room_id)
        return count

    async def add(self, alias: str, room_id: str, creator: str, now_ms: int) -> bool:
        """Make an alias; False if it is taken."""
        return await self._database.execute(_PUT, alias, room_id, creator, now_ms) == 1

    async def claim(self, alias: str, creator: str, now_ms: int) -> bool:
        """Keep an alias for a room that is about to be made, for a minute; False if it is taken."""
        return await self._database.execute(_PUT, alias, None, creator, now_ms) == 1

    async def settle(self, alias: str, room_id: str, creator: str) -> None:
        """Let an alias that ``creator`` claimed name the room that was made."""
        await self._database.execute(_SETTLE, alias, room_id, creator)

    async def unclaim(self, alias: str, creator: str) -> None:
        """Give a claimed alias back."""
        await self._database.execute(_UNCLAIM, alias, creator)

    async def delete(self, alias: str) -> None:
        """Remove an alias."""
        await self._database.execute(_DELETE, alias)

    async def move(self, room_id: str, new_room_id: str) -> None:
        """Let every alias of a room name another room."""
        await self._database.execute(_MOVE, room_id, new_room_id)
