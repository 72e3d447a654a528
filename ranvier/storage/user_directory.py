"""The user directory: whom a search finds, and what in the log concerns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Connection, Database

MAX_CANDIDATES: Final = 10_000
"""Users with matching names that are looked at for one search."""
_NEW_AT_ONCE: Final = 1000

_PROGRESS = "SELECT pos FROM user_directory_progress"
_ADVANCE = "UPDATE user_directory_progress SET pos = greatest(pos, $1)"
_CHANGED_ROOMS = """
SELECT d.room_nid, bool_or(d.type <> 'm.room.member') AS rules, u.room_nid IS NULL AS unknown
FROM state_deltas d LEFT JOIN user_directory_rooms u USING (room_nid)
WHERE d.pos > $1 AND d.pos <= $2
  AND d.type IN ('m.room.member', 'm.room.join_rules', 'm.room.history_visibility')
GROUP BY d.room_nid, u.room_nid
"""
_CHANGED_USERS = """
SELECT state_key AS user_id FROM state_deltas d
WHERE d.pos > $1 AND d.pos <= $2 AND d.type = 'm.room.member'
  AND d.type IN ('m.room.member', 'm.room.join_rules', 'm.room.history_visibility')
UNION
SELECT user_id FROM profiles WHERE pos > $1 AND pos <= $2
UNION
-- the room is new here: its members came before the log tells of it
SELECT state_key FROM current_state
WHERE room_nid = ANY ($3) AND type = 'm.room.member' AND membership = 'join'
"""
_REDACTIONS = """
SELECT pdu FROM events WHERE pos > $1 AND pos <= $2 AND type = 'm.room.redaction' AND pos IS NOT NULL
"""
_MEMBERS = """
SELECT DISTINCT state_key FROM events
WHERE event_id = ANY ($1) AND type = 'm.room.member' AND state_key IS NOT NULL
"""
_RULES = """
SELECT s.room_nid, e.pdu FROM current_state s JOIN events e USING (event_nid)
WHERE s.room_nid = ANY ($1) AND s.state_key = ''
  AND s.type IN ('m.room.join_rules', 'm.room.history_visibility')
"""
_PUT_ROOMS = """
INSERT INTO user_directory_rooms (room_nid, is_open) SELECT * FROM unnest($1::bigint[], $2::bool[])
ON CONFLICT (room_nid) DO UPDATE SET is_open = excluded.is_open
"""
_NEW = f"SELECT user_id FROM user_directory_new LIMIT {_NEW_AT_ONCE}"
_FORGET_NEW = "DELETE FROM user_directory_new WHERE user_id = ANY ($1)"
_SOURCES = """
SELECT u.user_id, a.user_id IS NOT NULL AS has_account, coalesce(a.deactivated, false) AS deactivated,
       p.document, m.pdu, coalesce(m.redacted, false) AS redacted, m.version
FROM unnest($1::text[]) AS u (user_id)
LEFT JOIN accounts a USING (user_id)
LEFT JOIN profiles p USING (user_id)
LEFT JOIN LATERAL (
    SELECT e.pdu, e.redacted_by IS NOT NULL AS redacted, r.version
    FROM current_state s JOIN events e USING (event_nid) JOIN rooms r ON r.room_nid = s.room_nid
    WHERE s.type = 'm.room.member' AND s.state_key = u.user_id AND s.membership = 'join'
    ORDER BY e.origin_server_ts DESC LIMIT 1
) m ON a.user_id IS NULL
"""
_PUT = """
INSERT INTO user_directory (user_id, display_name, avatar_url, name_key, local_key, words)
SELECT user_id, display_name, avatar_url, name_key, local_key, array_to_tsvector(string_to_array(words, ' '))
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
  AS n (user_id, display_name, avatar_url, name_key, local_key, words)
ON CONFLICT (user_id) DO UPDATE SET display_name = excluded.display_name, avatar_url = excluded.avatar_url,
    name_key = excluded.name_key, local_key = excluded.local_key, words = excluded.words
"""
_REMOVE = "DELETE FROM user_directory WHERE user_id = ANY ($1)"

# Of those whose names match, the best first; whether the searcher may know of them is looked up for one after
# the other, until there are enough.
_MATCHING = f"""
SELECT c.user_id, c.display_name, c.avatar_url FROM (
    SELECT d.user_id, d.display_name, d.avatar_url, r.rank, is_ours
    FROM (SELECT * FROM user_directory WHERE words @@ $1::text::tsquery LIMIT {MAX_CANDIDATES}) d
    CROSS JOIN LATERAL (SELECT CASE WHEN $2 IN (name_key, local_key) OR d.user_id = $3 THEN 0
        WHEN starts_with(name_key, $2) OR starts_with(local_key, $2) THEN 1 ELSE 2 END AS rank) r
    CROSS JOIN LATERAL (SELECT right(d.user_id, length($4)) = $4 AS is_ours) o
    WHERE d.user_id <> $5 AND ($6 OR is_ours)
    ORDER BY rank > 0, $7 AND NOT is_ours, rank, display_name IS NULL AND avatar_url IS NULL, d.user_id
) c
CROSS JOIN LATERAL (SELECT WHERE NOT EXISTS (
    SELECT FROM accounts a WHERE a.user_id = c.user_id AND (a.deactivated OR (a.locked AND NOT $8)))) existing
"""
_VISIBLE = """
CROSS JOIN LATERAL (
    SELECT FROM current_state m
    WHERE m.type = 'm.room.member' AND m.state_key = c.user_id AND m.membership = 'join'
      AND (m.room_nid = ANY ($10::bigint[])
           OR EXISTS (SELECT FROM user_directory_rooms o WHERE o.room_nid = m.room_nid AND o.is_open))
    LIMIT 1
) visible
"""
_SEARCH_ALL = f"{_MATCHING} LIMIT $9"
_SEARCH = f"{_MATCHING} {_VISIBLE} LIMIT $9"


class ChangedRoom(NamedTuple):
    """A room whose members changed, or (``rules``) who may join or read it, or that is ``unknown`` here."""

    room_nid: int
    rules: bool
    unknown: bool


class Source(NamedTuple):
    """Where the name of a user is to be read from: their profile, or a member event (perhaps redacted)."""

    user_id: str
    has_account: bool
    deactivated: bool
    document: bytes | None
    pdu: bytes | None
    redacted: bool
    version: str | None


class DirectoryEntry(NamedTuple):
    """What the directory keeps of a user; ``words`` have spaces between."""

    user_id: str
    display_name: str | None
    avatar_url: str | None
    name_key: str
    local_key: str
    words: str


class UserSearch(NamedTuple):
    """Whom to look for.

    ``query`` is a tsquery, ``key`` the words that make the best matches, ``user_id`` likewise; ``domain`` is
    that of users of ours with a colon before.
    """

    query: str
    key: str
    user_id: str
    domain: str
    searcher: str
    with_remote: bool
    prefer_local: bool
    with_locked: bool
    limit: int


class FoundUser(NamedTuple):
    """A user whom a search found."""

    user_id: str
    display_name: str | None
    avatar_url: str | None


class UserDirectoryStore:
    """Read and write the directory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def progress(self) -> int:
        """Give the log position up to which the directory is true."""
        pos: int = await self._database.fetchval(_PROGRESS)
        return pos

    async def advance(self, connection: Connection, pos: int, rooms: dict[int, bool]) -> None:
        """Note that the directory is true up to a position, and whether rooms (room_nid) are open to all."""
        if rooms:
            await connection.execute(_PUT_ROOMS, list(rooms), list(rooms.values()))
        await connection.execute(_ADVANCE, pos)

    async def changed_rooms(self, after: int, upto: int) -> list[ChangedRoom]:
        """Give the rooms of which something changed that concerns the directory."""
        return [ChangedRoom(*r) for r in await self._database.fetch(_CHANGED_ROOMS, after, upto)]

    async def changed_users(self, after: int, upto: int, new_rooms: Sequence[int]) -> set[str]:
        """Give the users whose name may have changed, and all who are in some rooms."""
        records = await self._database.fetch(_CHANGED_USERS, after, upto, new_rooms)
        return {record["user_id"] for record in records}

    async def redactions(self, after: int, upto: int) -> list[bytes]:
        """Give the redactions (PDUs) between two positions."""
        return [record["pdu"] for record in await self._database.fetch(_REDACTIONS, after, upto)]

    async def members(self, event_ids: Sequence[str]) -> set[str]:
        """Give whom those of some events are about that are member events."""
        return {record["state_key"] for record in await self._database.fetch(_MEMBERS, event_ids)}

    async def rules(self, room_nids: Sequence[int]) -> list[tuple[int, bytes]]:
        """Give the join rules and history visibilities (PDUs) of rooms, with their room_nid."""
        return [(r["room_nid"], r["pdu"]) for r in await self._database.fetch(_RULES, room_nids)]

    async def new_accounts(self) -> list[str]:
        """Give accounts that were made and are not in the directory yet."""
        return [r["user_id"] for r in await self._database.fetch(_NEW)]

    async def forget_new(self, connection: Connection, user_ids: Sequence[str]) -> None:
        """Note that accounts are in the directory."""
        await connection.execute(_FORGET_NEW, user_ids)

    async def sources(self, user_ids: Sequence[str]) -> list[Source]:
        """Give where to read the names of users from."""
        return [Source(*record) for record in await self._database.fetch(_SOURCES, user_ids)]

    async def put(
        self, connection: Connection, entries: Sequence[DirectoryEntry], gone: Sequence[str]
    ) -> None:
        """Write entries, and remove those of other users."""
        if entries:
            await connection.execute(_PUT, *(list(column) for column in zip(*entries, strict=True)))
        if gone:
            await connection.execute(_REMOVE, gone)

    async def search(self, search: UserSearch, room_nids: Sequence[int] | None) -> list[FoundUser]:
        """Give users whose names match, who are in one of some rooms or in an open one (None: wherever)."""
        if room_nids is None:
            records = await self._database.fetch(_SEARCH_ALL, *search)
        else:
            records = await self._database.fetch(_SEARCH, *search, room_nids)
        return [FoundUser(*record) for record in records]
