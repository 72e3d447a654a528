"""Rooms that everybody forgot: finding them, and removing what is stored of them in small pieces."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from ranvier.storage.database import Connection, Database

_PIECE: Final = 500
_EVENTS_AT_ONCE: Final = 100
"""Each may have 64 KiB, and all are parsed in one go."""

# A user of ours has nothing more to do with a room who forgot it after their last member event there, or who
# can never log in again. Whoever is in it, invited or waiting keeps it.
_CANDIDATES = """
WITH named AS (SELECT DISTINCT room_id FROM forgotten_rooms WHERE room_id > $1 ORDER BY room_id LIMIT $2)
SELECT named.room_id, r.head, r.room_nid IS NOT NULL AND NOT EXISTS (
    SELECT FROM current_state s LEFT JOIN accounts a ON a.user_id = s.state_key
    WHERE s.room_nid = r.room_nid AND s.type = 'm.room.member'
      AND substr(s.state_key, strpos(s.state_key, ':') + 1) = (SELECT server_name FROM server)
      AND (s.membership IN ('join', 'invite', 'knock') OR NOT (
        coalesce(a.deactivated AND NOT a.departing, false) OR EXISTS (
            SELECT FROM forgotten_rooms f WHERE f.user_id = s.state_key AND f.room_id = named.room_id
              AND f.ts <= $3 AND f.pos > (
                SELECT max(d.pos) FROM state_deltas d
                WHERE d.room_nid = r.room_nid AND d.type = 'm.room.member' AND d.state_key = s.state_key))))
  ) AND EXISTS (SELECT FROM forgotten_rooms f WHERE f.room_id = named.room_id AND f.ts <= $3) AS forgotten
FROM named LEFT JOIN rooms r USING (room_id) ORDER BY named.room_id
"""
_PENDING = "SELECT room_nid, room_id, snapshot_nid FROM purged_rooms"
_EVENTS = f"""
(SELECT event_nid, event_id, snapshot_nid, pdu FROM events WHERE room_nid = $1 AND pos IS NOT NULL
 ORDER BY pos LIMIT {_EVENTS_AT_ONCE})
UNION ALL
(SELECT event_nid, event_id, snapshot_nid, pdu FROM events
 WHERE room_nid = $1 AND pos IS NULL AND state_key IS NOT NULL LIMIT {_EVENTS_AT_ONCE})
UNION ALL
(SELECT event_nid, event_id, snapshot_nid, pdu FROM events
 WHERE room_nid = $1 AND pos IS NULL AND state_key IS NULL LIMIT {_EVENTS_AT_ONCE})
LIMIT {_EVENTS_AT_ONCE}
"""
_REMOVE_EVENTS = """
WITH RECURSIVE edges AS (DELETE FROM event_edges WHERE event_nid = ANY ($2) AND prev_id = ANY ($4)),
relating AS (DELETE FROM relations WHERE event_nid = ANY ($2) AND target_id = ANY ($5)),
redacting AS (DELETE FROM redactions WHERE event_nid = ANY ($2) AND target_id = ANY ($5)),
chain AS (
    SELECT snapshot_nid, parent_nid FROM snapshots WHERE snapshot_nid = ANY ($3) AND room_nid = $1
    UNION
    SELECT s.snapshot_nid, s.parent_nid FROM snapshots s JOIN chain ON s.snapshot_nid = chain.parent_nid
    WHERE s.room_nid = $1
),
states AS (DELETE FROM snapshots WHERE snapshot_nid IN (SELECT snapshot_nid FROM chain))
DELETE FROM events WHERE event_nid = ANY ($2)
"""
_REMOVE_STATE = f"""
WITH gone AS (
    DELETE FROM current_state WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM current_state WHERE room_nid = $1 LIMIT {_PIECE})) RETURNING type, state_key
), notes AS (
    DELETE FROM account_data WHERE room_id = $2
       AND user_id IN (SELECT state_key FROM gone WHERE type = 'm.room.member')
)
SELECT count(*) FROM gone
"""
_REMOVE_REST: Final = tuple(
    f"""
WITH gone AS (
    DELETE FROM {table} WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {table} WHERE {column} LIMIT {_PIECE})) RETURNING true
) SELECT count(*) FROM gone
"""
    for table, column in (
        ("state_deltas", "room_nid = $1 AND $2::text IS NOT NULL"),
        ("unread_tallies", "room_nid = $1 AND $2::text IS NOT NULL"),
        ("receipts", "room_id = $2 AND $1::bigint IS NOT NULL"),
        ("forgotten_rooms", "room_id = $2 AND $1::bigint IS NOT NULL"),
    )
)
_DONE = """
WITH open AS (DELETE FROM user_directory_rooms WHERE room_nid = $1)
DELETE FROM purged_rooms WHERE room_nid = $1
"""


class Candidate(NamedTuple):
    """A room that some user forgot; ``forgotten`` if all did, as of the room's ``head``."""

    room_id: str
    head: int | None
    forgotten: bool


class PurgedRoom(NamedTuple):
    """A row of the table ``purged_rooms``."""

    room_nid: int
    room_id: str
    snapshot_nid: int


class RoomPurgeStore:
    """Find forgotten rooms, and remove those that the log has taken away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def candidates(self, after: str, cutoff_ms: int, limit: int) -> list[Candidate]:
        """Give rooms that anybody forgot, by their ids after ``after``; by all before ``cutoff_ms``?"""
        records = await self._database.fetch(_CANDIDATES, after, limit, cutoff_ms)
        return [Candidate(*record) for record in records]

    async def pending(self) -> list[PurgedRoom]:
        """Give the rooms of which something may be left."""
        return [PurgedRoom(*record) for record in await self._database.fetch(_PENDING)]

    async def remove_piece(self, connection: Connection, room: PurgedRoom) -> bool:
        """Remove some of what is stored of a room; False when nothing is left of it, not even its row.

        The events come first: they say which rows of other tables are theirs.
        """
        events = await connection.fetch(_EVENTS, room.room_nid)
        if events:
            snapshots = {record["snapshot_nid"] for record in events} | {room.snapshot_nid}
            prev_ids, targets = _references([record["pdu"] for record in events])
            await connection.execute(
                _REMOVE_EVENTS,
                room.room_nid,
                [record["event_nid"] for record in events],
                [nid for nid in snapshots if nid is not None],
                prev_ids,
                targets,
            )
            return True
        for statement in (_REMOVE_STATE, *_REMOVE_REST):
            if await connection.fetchval(statement, room.room_nid, room.room_id):
                return True
        await connection.execute(_DONE, room.room_nid)
        return False


def _references(pdus: list[bytes]) -> tuple[list[str], list[str]]:
    """Give the ids of the events that some events follow, and of those that they relate to or redact."""
    prev_ids: set[str] = set()
    targets: set[str] = set()
    for pdu in map(orjson.loads, pdus):
        content = pdu.get("content")
        content = content if isinstance(content, dict) else {}
        relation = content.get("m.relates_to")
        named = [pdu.get("redacts"), content.get("redacts")]
        named.append(relation.get("event_id") if isinstance(relation, dict) else None)
        targets.update(_texts(named))
        for prev in pdu.get("prev_events") or ():
            # In the first room versions an event is referred to by its id and its hashes.
            prev_ids.update(_texts(prev[:1] if isinstance(prev, list) else [prev]))
    return list(prev_ids), list(targets)


def _texts(values: list[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str) and "\0" not in value]
