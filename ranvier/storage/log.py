"""The log in PostgreSQL: one append per batch, and what a follower reads that missed a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from ranvier.spec.event import StateKey
from ranvier.storage.database import Connection, Database, Record
from ranvier.storage.events import EVENT_COLUMNS, event_row
from ranvier.wire.log_rows import EventRow, LogRow, Row

_APPEND = "SELECT * FROM log_append($1, $2, $3, $4, $5, $6, $7, $8)"
_HEAD = "SELECT pos FROM log_head"
_BOUNDS = "SELECT p.pos AS pruned, h.pos AS head FROM log_pruned p, log_head h"
_EVENTS_BETWEEN = f"""
SELECT {EVENT_COLUMNS},
       (SELECT jsonb_agg(jsonb_build_array(d.type, d.state_key)) FROM state_deltas d,
               -- its own key twice, if that became another event than this one
               generate_series(1, CASE WHEN d.event_nid IS DISTINCT FROM e.event_nid AND d.type = e.type
                                        AND d.state_key = e.state_key THEN 2 ELSE 1 END)
         WHERE d.room_nid = e.room_nid AND d.pos = e.pos) AS state_changes
FROM events e JOIN rooms r USING (room_nid)
WHERE e.pos > $1 AND e.pos <= $2 ORDER BY e.pos
"""
_ROWS_BETWEEN = """
SELECT p.pos AS pruned, l.pos, kind, room_id, user_id, device_id, key, key2, body
FROM (SELECT pos FROM log_pruned LIMIT 1) p LEFT JOIN log l ON l.pos > $1 AND l.pos <= $2 ORDER BY l.pos
"""
_decode_keys = msgspec.json.Decoder(tuple[StateKey, ...]).decode
_REDACTED_BY = "SELECT event_id, redacted_by FROM events WHERE event_id = ANY ($1)"


class StateChange(NamedTuple):
    """One key of the current state that becomes another event (or none) together with event ``at_nid``."""

    room_nid: int
    at_nid: int
    type: str
    state_key: str
    event_nid: int | None
    prev_nid: int | None
    membership: str | None


class Snapshot(NamedTuple):
    """One immutable state of a room; see the table ``snapshots``."""

    snapshot_nid: int
    room_nid: int
    parent_nid: int | None
    steps: int
    state: bytes | None
    added: list[int] | None
    removed: list[int] | None


class Relation(NamedTuple):
    """``m.relates_to`` of one event."""

    event_nid: int
    room_nid: int
    target_id: str
    rel_type: str
    type: str
    sender: str


class Redaction(NamedTuple):
    """One redaction; ``effective`` if it was found to be allowed to redact its target."""

    event_nid: int
    room_nid: int
    target_id: str
    effective: bool


class RoomWrite(msgspec.Struct, kw_only=True):
    """All that one commit does to one room, computed on the head ``expected_head`` (0: a new room)."""

    room_nid: int
    room_id: str
    version_id: str
    expected_head: int
    snapshot_nid: int
    extremities: list[int]
    events: list[EventRow]
    txn_scopes: dict[int, str]
    snapshots: list[Snapshot]
    changes: list[StateChange]
    relations: list[Relation]
    redactions: list[Redaction]


class Appended(NamedTuple):
    """What an append did: the position before it, and the rooms (room_nid) that it refused."""

    before: int
    moved: list[int]
    repeated: list[int]


_OF_OTHERS: Final = ("events_by_id", "to_device_transactions_pkey")


class LogPruned(Exception):
    """Say that rows were removed which a follower did not read: what it holds can not be made true."""


class AlreadyStored(Exception):
    """Say that another process stored an event, or used a transaction id, first: nothing was written."""


async def append(
    connection: Connection, rooms: Sequence[RoomWrite], rows: Sequence[LogRow], now_ms: int
) -> Appended:
    """Write one batch in one commit; see the function ``log_append`` of the schema.

    Raises AlreadyStored.
    """
    try:
        record = await _append(connection, rooms, rows, now_ms)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name not in _OF_OTHERS:
            raise
        raise AlreadyStored from None
    assert record is not None
    return Appended(record["before_pos"], record["moved"], record["repeated"])


async def prepare_append(connection: Connection) -> None:
    """Have a connection learn what ``append`` needs: it takes fifty times as long as to append."""
    await connection.prepare(_APPEND)


async def _append(
    connection: Connection, rooms: Sequence[RoomWrite], rows: Sequence[LogRow], now_ms: int
) -> Record | None:
    record: Record | None = await connection.fetchrow(
        _APPEND,
        [
            (r.room_nid, r.room_id, r.version_id, r.expected_head, r.snapshot_nid, r.extremities)
            for r in rooms
        ],
        [_event_tuple(event, room.txn_scopes) for room in rooms for event in room.events],
        [snapshot for room in rooms for snapshot in room.snapshots],
        [change for room in rooms for change in room.changes],
        [relation for room in rooms for relation in room.relations],
        [redaction for room in rooms for redaction in room.redactions],
        [(r.kind, r.room_id, r.user_id, r.device_id, r.key, r.key2, r.body) for r in rows],
        now_ms,
    )
    return record


def _event_tuple(e: EventRow, txn_scopes: dict[int, str]) -> tuple[Any, ...]:
    return (
        e.event_nid,
        e.room_nid,
        e.event_id,
        e.type,
        e.state_key,
        e.sender,
        e.depth,
        e.origin_server_ts,
        e.snapshot_nid,
        e.replaces_nid,
        e.auth_chain,
        e.txn_device,
        e.txn_id,
        txn_scopes.get(e.event_nid),
        e.pdu,
    )


async def head(database: Database) -> int:
    """Give the position of the newest row."""
    pos: int = await database.fetchval(_HEAD)
    return pos


async def bounds(database: Database) -> tuple[int, int]:
    """Give the position up to which old rows were removed, and that of the newest row."""
    record = await database.fetchrow(_BOUNDS)
    assert record is not None
    return record["pruned"], record["head"]


async def rows_between(database: Database, after: int, upto: int) -> list[Row]:
    """Read the rows of the positions ``after`` + 1 to ``upto``, in order. Raises LogPruned."""
    async with database.connection() as connection:
        events = await connection.fetch(_EVENTS_BETWEEN, after, upto)
        others = await connection.fetch(_ROWS_BETWEEN, after, upto)
    rows: list[Row] = []
    for record in events:
        row = event_row(record)
        changes = record["state_changes"]
        if changes:
            row.state_changes = _decode_keys(changes)
        rows.append(row)
    for columns in map(dict, others):
        if (pruned := columns.pop("pruned")) > after:
            raise LogPruned(f"Rows of the log after {after}, up to {pruned}, were removed")
        if columns["pos"] is not None:
            rows.append(LogRow(**columns))
    await _mark_redactions(database, rows)
    rows.sort(key=lambda row: row.pos)
    return rows


async def _mark_redactions(database: Database, rows: Sequence[Row]) -> None:
    """Say of each redaction which event it took effect on."""
    by_nid: dict[int, EventRow] = {}
    targets: set[str] = set()
    for row in rows:
        if isinstance(row, EventRow) and row.type == "m.room.redaction" and (target := row.event.redacts):
            by_nid[row.event_nid] = row
            targets.add(target)
    if not targets:
        return
    for record in await database.fetch(_REDACTED_BY, list(targets)):
        # Of several redactions of one event the first took effect.
        if (redaction := by_nid.get(record["redacted_by"])) is not None:
            redaction.redacts = record["event_id"]
