"""Rooms: their heads, their current state and its changes, and the snapshots of older states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson
from pyroaring import BitMap64

from ranvier.spec.event import StateKey
from ranvier.storage.database import Database
from ranvier.storage.events import EVENT_COLUMNS, EVENTS_BY_NIDS, event_rows
from ranvier.wire.log_rows import EventRow

_ROOM = """
SELECT room_nid, room_id, version, head, snapshot_nid, extremities FROM rooms WHERE room_id = $1
"""
_ROOM_AND_STEPS = """
SELECT r.room_nid, r.room_id, r.version, r.head, r.snapshot_nid, r.extremities, s.steps
FROM rooms r LEFT JOIN snapshots s USING (snapshot_nid) WHERE r.room_id = $1
"""
_PAGE = 500
_STATE_PAGE = f"""
SELECT {EVENT_COLUMNS}, s.membership
FROM current_state s JOIN events e USING (event_nid) JOIN rooms r ON r.room_nid = e.room_nid
WHERE s.room_nid = $1 AND (s.type, s.state_key) > ($2, $3) ORDER BY s.type, s.state_key LIMIT {_PAGE}
"""
_MEMBERSHIPS = """
SELECT r.room_id, s.room_nid, s.membership, s.event_nid, d.pos, e.sender
FROM current_state s JOIN rooms r USING (room_nid) JOIN events e USING (event_nid)
-- A member event that is not in the timeline (it came with the state of a room) has no position of its own.
JOIN (SELECT room_nid, max(pos) AS pos FROM state_deltas
      WHERE type = 'm.room.member' AND state_key = $1 GROUP BY room_nid) d ON d.room_nid = s.room_nid
WHERE s.type = 'm.room.member' AND s.state_key = $1 AND s.membership IS NOT NULL
"""
_CHANGED_BACK = """
SELECT DISTINCT ON (d.room_nid, d.type, d.state_key) d.room_nid, d.type, d.state_key, d.prev_nid
FROM unnest($1::bigint[], $2::bigint[]) AS wanted (room_nid, after)
JOIN state_deltas d ON d.room_nid = wanted.room_nid AND d.pos > wanted.after
ORDER BY d.room_nid, d.type, d.state_key, d.pos
"""
_CHANGED = """
SELECT DISTINCT ON (type, state_key) type, state_key, event_nid FROM state_deltas
WHERE room_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY type, state_key, pos DESC
"""
_HISTORY_OF_KEYS = """
SELECT d.pos, d.type, d.state_key, e.pdu FROM state_deltas d LEFT JOIN events e USING (event_nid)
WHERE d.room_nid = $1 AND (d.type, d.state_key) IN (SELECT * FROM unnest($2::text[], $3::text[]))
ORDER BY d.pos
"""
_SIGHT_CHANGES = """
SELECT d.room_nid, d.pos, d.type, e.pdu FROM state_deltas d LEFT JOIN events e ON e.event_nid = d.event_nid
WHERE d.room_nid = ANY ($1) AND d.type = 'm.room.member' AND d.state_key = $2
UNION ALL
SELECT d.room_nid, d.pos, d.type, e.pdu FROM state_deltas d LEFT JOIN events e ON e.event_nid = d.event_nid
WHERE d.room_nid = ANY ($1) AND d.type = 'm.room.history_visibility' AND d.state_key = ''
ORDER BY room_nid, pos
"""
_MEMBERSHIP_CHANGES = """
SELECT d.pos, r.room_id, d.room_nid, d.event_nid FROM state_deltas d JOIN rooms r USING (room_nid)
WHERE d.type = 'm.room.member' AND d.state_key = $1 AND d.pos > $2 AND d.pos <= $3 ORDER BY d.pos
"""
_SNAPSHOT_CHAIN = """
WITH RECURSIVE chain AS (
    SELECT snapshot_nid, parent_nid, state, added, removed, 0 AS level FROM snapshots WHERE snapshot_nid = $1
    UNION ALL
    SELECT s.snapshot_nid, s.parent_nid, s.state, s.added, s.removed, chain.level + 1
    FROM snapshots s JOIN chain ON s.snapshot_nid = chain.parent_nid WHERE chain.state IS NULL
)
SELECT state, added, removed FROM chain ORDER BY level DESC
"""


class StoredRoom(NamedTuple):
    """A row of the table ``rooms``."""

    room_nid: int
    room_id: str
    version: str
    head: int
    snapshot_nid: int
    extremities: list[int]


class LoadedRoom(NamedTuple):
    """A room with its extremities and its current state, as of ``stored.head``."""

    stored: StoredRoom
    snapshot_steps: int
    extremities: list[EventRow]
    state: list[EventRow]


class StoredMembership(NamedTuple):
    """What one user is in one room; ``pos`` is the log position of the member event."""

    room_id: str
    room_nid: int
    membership: str
    event_nid: int
    pos: int
    sender: str


class MembershipChange(NamedTuple):
    """One change of a user's membership along the log; ``event_nid`` is None if it went away."""

    pos: int
    room_id: str
    room_nid: int
    event_nid: int | None


class KeyChange(NamedTuple):
    """One change of a state key along the log, with the PDU that it became (None: gone)."""

    pos: int
    type: str
    state_key: str
    pdu: bytes | None


class SightChange(NamedTuple):
    """One change of a user's membership, or of the history visibility, along a room's log.

    ``value`` is the membership or the visibility that it became; None if it went away or is no text.
    """

    pos: int
    type: str
    value: str | None


class RoomStore:
    """Read rooms and their states of any time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, room_id: str) -> StoredRoom | None:
        """Find a room by its id."""
        record = await self._database.fetchrow(_ROOM, room_id)
        return None if record is None else StoredRoom(*record)

    async def load(self, room_id: str) -> LoadedRoom | None:
        """Read a room, its extremities and its current state, all of one moment.

        The state is read in pages, so that a large room does not stall the event loop.
        """
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            record = await connection.fetchrow(_ROOM_AND_STEPS, room_id)
            if record is None:
                return None
            *columns, steps = record
            room = StoredRoom(*columns)
            extremities = await event_rows(
                connection, await connection.fetch(EVENTS_BY_NIDS, room.extremities)
            )
            state: list[EventRow] = []
            key: StateKey = ("", "")
            while True:
                page = await event_rows(connection, await connection.fetch(_STATE_PAGE, room.room_nid, *key))
                state.extend(page)
                if len(page) < _PAGE:
                    return LoadedRoom(room, steps, extremities, state)
                key = page[-1].key

    async def memberships(self, user_id: str) -> list[StoredMembership]:
        """Give what the user is in every room that has a member event of theirs."""
        return [StoredMembership(*record) for record in await self._database.fetch(_MEMBERSHIPS, user_id)]

    async def membership_changes(self, user_id: str, after: int, upto: int) -> list[MembershipChange]:
        """Give the changes of the user's memberships between two positions, in order."""
        records = await self._database.fetch(_MEMBERSHIP_CHANGES, user_id, after, upto)
        return [MembershipChange(*record) for record in records]

    async def changed_keys(self, room_nid: int, after: int, upto: int) -> dict[StateKey, int | None]:
        """Give the state keys that changed between two positions, with their event at ``upto``."""
        records = await self._database.fetch(_CHANGED, room_nid, after, upto)
        return {(r["type"], r["state_key"]): r["event_nid"] for r in records}

    async def changed_since(self, positions: Mapping[int, int]) -> dict[int, dict[StateKey, int | None]]:
        """Say what to undo to get back to an older state, for many rooms at once.

        ``positions`` gives a position per room_nid. The answer names, per room_nid, the state keys that
        changed after it, with the event_nid that they had there (None: they were not there).
        """
        rooms: dict[int, dict[StateKey, int | None]] = {}
        if positions:
            records = await self._database.fetch(_CHANGED_BACK, list(positions), list(positions.values()))
            for r in records:
                rooms.setdefault(r["room_nid"], {})[(r["type"], r["state_key"])] = r["prev_nid"]
        return rooms

    async def history_of_keys(self, room_nid: int, keys: Sequence[StateKey]) -> list[KeyChange]:
        """Give every change of a few state keys, in order."""
        records = await self._database.fetch(
            _HISTORY_OF_KEYS, room_nid, [key[0] for key in keys], [key[1] for key in keys]
        )
        return [KeyChange(*record) for record in records]

    async def sight_changes(self, room_nids: Sequence[int], user_id: str) -> dict[int, list[SightChange]]:
        """Give, for each room, how the history visibility and the user's membership changed, in order."""
        changes: dict[int, list[SightChange]] = {}
        for record in await self._database.fetch(_SIGHT_CHANGES, room_nids, user_id):
            value = None
            if record["pdu"] is not None:
                name = "membership" if record["type"] == "m.room.member" else "history_visibility"
                value = orjson.loads(record["pdu"])["content"].get(name)
            change = SightChange(record["pos"], record["type"], value if isinstance(value, str) else None)
            changes.setdefault(record["room_nid"], []).append(change)
        return changes

    async def snapshot(self, snapshot_nid: int) -> BitMap64:
        """Give the events of a snapshot, by its nearest full copy and the changes since."""
        return (await self.snapshot_and_steps(snapshot_nid))[0]

    async def snapshot_and_steps(self, snapshot_nid: int) -> tuple[BitMap64, int]:
        """Give the events of a snapshot, and how many changes lie between it and a full copy."""
        state = BitMap64()
        chain = await self._database.fetch(_SNAPSHOT_CHAIN, snapshot_nid)
        for record in chain:
            if record["state"] is not None:
                state = BitMap64.deserialize(record["state"])
            else:
                state |= BitMap64(record["added"])
                state -= BitMap64(record["removed"])
        return state, len(chain) - 1
