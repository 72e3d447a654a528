"""The published rooms, and the few facts about rooms that directories, summaries and spaces tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.database import Database

FACT_TYPES: Final = (
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
)
_STALE_PAGE: Final = 200

_FACTS = """
SELECT r.room_id, r.room_nid, r.version, r.snapshot_nid,
       (SELECT count(*) FROM current_state m
         WHERE m.room_nid = r.room_nid AND m.type = 'm.room.member' AND m.membership = 'join') AS joined,
       array_agg(e.pdu) AS pdus, array_agg(e.redacted_by IS NOT NULL) AS redacted
FROM rooms r
JOIN current_state s ON s.room_nid = r.room_nid AND s.state_key = '' AND s.type = ANY ($2)
JOIN events e ON e.event_nid = s.event_nid
WHERE r.room_id = ANY ($1) GROUP BY r.room_nid
"""
_CHILDREN = """
SELECT e.pdu, e.redacted_by IS NOT NULL AS redacted
FROM rooms r JOIN current_state s ON s.room_nid = r.room_nid AND s.type = 'm.space.child'
JOIN events e ON e.event_nid = s.event_nid
WHERE r.room_id = $1 ORDER BY s.state_key LIMIT $2
"""
_PUBLISH = """
INSERT INTO room_directory (room_nid, room_id, publisher)
SELECT room_nid, room_id, $2 FROM rooms WHERE room_id = $1 ON CONFLICT DO NOTHING
"""
_UNPUBLISH = "DELETE FROM room_directory WHERE room_id = $1"
_IS_PUBLISHED = "SELECT EXISTS (SELECT FROM room_directory WHERE room_id = $1)"
_PUBLISHED_AMONG = "SELECT room_id FROM room_directory WHERE room_id = ANY ($1)"
_STALE = f"""
SELECT d.room_id, d.snapshot_nid FROM room_directory d JOIN rooms r USING (room_nid)
WHERE d.snapshot_nid <> r.snapshot_nid LIMIT {_STALE_PAGE}
"""
# Never waits: a commit, for which all others wait, may mark several of these rooms.
_REFRESH = """
WITH free AS MATERIALIZED (
    SELECT room_nid FROM room_directory WHERE room_nid = ANY ($1::bigint[]) FOR UPDATE SKIP LOCKED
)
UPDATE room_directory d SET snapshot_nid = n.snapshot_nid, joined_members = n.joined_members,
       room_type = n.room_type, searched = n.searched, shown = n.shown
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::text[], $6::text[], $7::bytea[])
  AS n (room_nid, was_made_of, snapshot_nid, joined_members, room_type, searched, shown)
JOIN free USING (room_nid)
WHERE d.room_nid = n.room_nid AND d.snapshot_nid = n.was_made_of
"""
_FOUND = """
FROM room_directory WHERE shown IS NOT NULL
  AND ($1::text IS NULL OR searched LIKE $1)
  AND ($2::text[] IS NULL OR room_type = ANY ($2) OR ($3 AND room_type IS NULL))
"""
_AFTER = f"""
SELECT room_id, joined_members, shown {_FOUND}
  AND ($4::integer IS NULL OR (-joined_members, room_id) > (-$4, $5))
ORDER BY joined_members DESC, room_id LIMIT $6
"""
_BEFORE = f"""
SELECT room_id, joined_members, shown {_FOUND}
  AND (-joined_members, room_id) < (-$4::integer, $5) ORDER BY joined_members, room_id DESC LIMIT $6
"""
_COUNT = f"SELECT count(*) {_FOUND}"


class RoomFacts(NamedTuple):
    """A few facts about a room: the contents of ``FACT_TYPES`` (redacted where they are), by type."""

    room_id: str
    room_nid: int
    version: str
    snapshot_nid: int
    joined_members: int
    contents: dict[str, dict[str, Any]]


class Entry(NamedTuple):
    """What the directory keeps of a published room, in place of what was made of ``was_made_of``."""

    room_nid: int
    was_made_of: int
    snapshot_nid: int
    joined_members: int
    room_type: str | None
    searched: str
    shown: bytes


class Search(NamedTuple):
    """Which published rooms are wanted: a pattern for LIKE, and room types (None for all).

    ``untyped`` asks for rooms without a type, too.
    """

    pattern: str | None = None
    room_types: list[str] | None = None
    untyped: bool = False


class Place(NamedTuple):
    """A place between two rooms of the directory: by that of a room."""

    joined_members: int
    room_id: str


class Listed(NamedTuple):
    """A room as the directory lists it."""

    place: Place
    shown: bytes


class RoomDirectoryStore:
    """Read facts about rooms, and read and write the directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def facts(self, room_ids: Sequence[str]) -> dict[str, RoomFacts]:
        """Give the facts about many rooms at once; those not known are left out."""
        if not room_ids:
            return {}
        records = await self._database.fetch(_FACTS, room_ids, FACT_TYPES)
        found = {}
        for r in records:
            contents = {}
            for raw, redacted in zip(r["pdus"], r["redacted"], strict=True):
                pdu = _visible(raw, redacted, r["version"])
                contents[pdu["type"]] = pdu["content"]
            found[r["room_id"]] = RoomFacts(
                r["room_id"], r["room_nid"], r["version"], r["snapshot_nid"], r["joined"], contents
            )
        return found

    async def children(self, room_id: str, limit: int) -> list[dict[str, Any]]:
        """Give the m.space.child events (as PDUs) of a room that are not redacted."""
        records = await self._database.fetch(_CHILDREN, room_id, limit)
        return [orjson.loads(record["pdu"]) for record in records if not record["redacted"]]

    async def publish(self, room_id: str, publisher: str) -> None:
        """Put a room into the directory."""
        await self._database.execute(_PUBLISH, room_id, publisher)

    async def unpublish(self, room_id: str) -> None:
        """Take a room out of the directory."""
        await self._database.execute(_UNPUBLISH, room_id)

    async def is_published(self, room_id: str) -> bool:
        """Tell whether a room is in the directory."""
        published: bool = await self._database.fetchval(_IS_PUBLISHED, room_id)
        return published

    async def published_among(self, room_ids: Sequence[str]) -> set[str]:
        """Give those of some rooms that are in the directory."""
        if not room_ids:
            return set()
        return {record["room_id"] for record in await self._database.fetch(_PUBLISHED_AMONG, room_ids)}

    async def stale(self) -> dict[str, int]:
        """Give published rooms whose state is newer than what the directory tells, with what that is of."""
        return {r["room_id"]: r["snapshot_nid"] for r in await self._database.fetch(_STALE)}

    async def refresh(self, entries: Sequence[Entry]) -> None:
        """Write what the directory tells of some rooms, where that did not become stale (anew) meanwhile."""
        if entries:
            await self._database.execute(_REFRESH, *(list(column) for column in zip(*entries, strict=True)))

    async def count(self, search: Search) -> int:
        """Give the number of rooms that a search finds."""
        count: int = await self._database.fetchval(_COUNT, *search)
        return count

    async def after(self, search: Search, place: Place | None, limit: int) -> list[Listed]:
        """Give the next rooms after a place, those with the most members first."""
        joined, room_id = place if place is not None else (None, None)
        records = await self._database.fetch(_AFTER, *search, joined, room_id, limit)
        return [Listed(Place(r["joined_members"], r["room_id"]), r["shown"]) for r in records]

    async def before(self, search: Search, place: Place, limit: int) -> list[Listed]:
        """Give the rooms right before a place, in the order of the directory."""
        records = await self._database.fetch(_BEFORE, *search, *place, limit)
        return [Listed(Place(r["joined_members"], r["room_id"]), r["shown"]) for r in reversed(records)]


def _visible(raw: bytes, redacted: bool, version: str) -> dict[str, Any]:
    pdu: dict[str, Any] = orjson.loads(raw)
    return redact(pdu, ROOM_VERSIONS[version]) if redacted else pdu
