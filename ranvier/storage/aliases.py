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
# By somebody who died before the alias was settled. Older events are of an alias that was given up.
_MADE_FOR_CLAIM = """
SELECT r.room_id, a.creator, e.pdu FROM room_aliases a
JOIN current_state m ON m.type = 'm.room.member' AND m.state_key = a.creator AND m.membership = 'join'
JOIN current_state c ON c.room_nid = m.room_nid AND c.type = 'm.room.canonical_alias' AND c.state_key = ''
JOIN events e ON e.event_nid = c.event_nid AND e.sender = a.creator AND e.origin_server_ts >= a.created_ts
JOIN rooms r ON r.room_nid = m.room_nid
WHERE a.alias = $1 AND a.room_id IS NULL
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

    async def made_for_claim(self, alias: str) -> list[tuple[str, str, bytes]]:
        """Give rooms that may have been made for an alias which is claimed only.

        Each with who claimed it, and the PDU of the room's canonical alias.
        """
        records = await self._database.fetch(_MADE_FOR_CLAIM, alias)
        return [(record["room_id"], record["creator"], record["pdu"]) for record in records]

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
