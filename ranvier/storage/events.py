"""Events: reading them, and storing those that do not go through the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from ranvier.storage.database import Database, Record
from ranvier.wire.log_rows import EventRow

EVENT_COLUMNS: Final = """
e.pos, e.event_nid, e.room_nid, r.room_id, r.version AS version_id, e.event_id, e.type, e.state_key, e.sender,
e.depth, e.origin_server_ts, e.pdu, e.snapshot_nid, e.replaces_nid, e.auth_chain, e.txn_device, e.txn_id,
e.redacted_by
"""
_SELECT: Final = f"SELECT {EVENT_COLUMNS} FROM events e JOIN rooms r USING (room_nid) "

_BY_IDS = _SELECT + "WHERE e.event_id = ANY ($1)"
EVENTS_BY_NIDS = _SELECT + "WHERE e.event_nid = ANY ($1)"
_IN_TIMELINE = "e.room_nid = $1 AND e.pos IS NOT NULL AND NOT e.rejected AND NOT e.soft_failed "
_BACKWARDS = _SELECT + f"WHERE {_IN_TIMELINE} AND e.pos <= $2 AND e.pos > $3 ORDER BY e.pos DESC LIMIT $4"
_FORWARDS = _SELECT + f"WHERE {_IN_TIMELINE} AND e.pos > $2 AND e.pos <= $3 ORDER BY e.pos LIMIT $4"
_LATEST_OF_ROOMS = f"""
SELECT {EVENT_COLUMNS}
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS wanted (wanted_nid, after, upto)
JOIN rooms r ON r.room_nid = wanted_nid
CROSS JOIN LATERAL (
    SELECT * FROM events WHERE room_nid = wanted_nid AND pos IS NOT NULL AND pos > after AND pos <= upto
      AND NOT rejected AND NOT soft_failed ORDER BY pos DESC LIMIT $4
) e ORDER BY e.pos
"""
_FIRST_OF_ROOMS = f"""
SELECT {EVENT_COLUMNS}
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS wanted (wanted_nid, after, upto)
JOIN rooms r ON r.room_nid = wanted_nid
CROSS JOIN LATERAL (
    SELECT * FROM events WHERE room_nid = wanted_nid AND pos IS NOT NULL AND pos > after AND pos <= upto
      AND NOT rejected AND NOT soft_failed ORDER BY pos LIMIT $4
) e ORDER BY e.pos LIMIT $4
"""
_MOST_NEAR: Final = 20_000
_NEAREST = """
SELECT c.event_id, c.origin_server_ts FROM (
    SELECT event_id, origin_server_ts, pos FROM events
    WHERE room_nid = $1 AND pos IS NOT NULL AND NOT rejected AND NOT soft_failed AND origin_server_ts {0} $2
    ORDER BY origin_server_ts {1} LIMIT {2}
) c
WHERE EXISTS (SELECT FROM unnest($3::bigint[], $4::bigint[]) AS v (first, last)
              WHERE c.pos BETWEEN v.first AND v.last)
LIMIT 1
"""
_NEAREST_BEFORE = _NEAREST.format("<=", "DESC", _MOST_NEAR)
_NEAREST_AFTER = _NEAREST.format(">=", "ASC", _MOST_NEAR)
_AUTH_CHAINS = "SELECT event_nid, event_id, auth_chain FROM events WHERE event_nid = ANY ($1)"
_NIDS = "SELECT event_id, event_nid FROM events WHERE event_id = ANY ($1)"
_STORE_OUTLIERS = """
INSERT INTO events (event_nid, room_nid, event_id, type, state_key, sender, depth, origin_server_ts, rejected,
                    soft_failed, snapshot_nid, auth_chain, pdu)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                     $8::bigint[], $9::bool[], $10::bool[], $11::bigint[], $12::bytea[], $13::bytea[])
ON CONFLICT DO NOTHING
"""


def event_row(record: Record) -> EventRow:
    """Make an EventRow of a record with ``EVENT_COLUMNS`` (and perhaps ``membership``).

    ``event_rows`` fills in redactions.
    """
    return EventRow(
        event_nid=record["event_nid"],
        room_nid=record["room_nid"],
        room_id=record["room_id"],
        version_id=record["version_id"],
        event_id=record["event_id"],
        type=record["type"],
        state_key=record["state_key"],
        sender=record["sender"],
        depth=record["depth"],
        origin_server_ts=record["origin_server_ts"],
        pdu=record["pdu"],
        snapshot_nid=record["snapshot_nid"],
        pos=record["pos"] or 0,
        replaces_nid=record["replaces_nid"],
        auth_chain=record["auth_chain"],
        txn_device=record["txn_device"],
        txn_id=record["txn_id"],
        known_membership=record.get("membership"),
    )


class TimelineSpan(NamedTuple):
    """A part of a room's timeline: the events after ``after``, up to ``upto``."""

    room_id: str
    room_nid: int
    after: int
    upto: int


class Fetches(Protocol):
    """Run a statement: a Database, or a Connection inside of a transaction."""

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """Give all rows of a statement."""


async def event_rows(database: Fetches, records: Sequence[Record]) -> list[EventRow]:
    """Make EventRows of records with ``EVENT_COLUMNS``, with the redactions that took effect on them."""
    rows = [event_row(record) for record in records]
    by_redaction = {r["redacted_by"]: row for r, row in zip(records, rows, strict=True) if r["redacted_by"]}
    if by_redaction:
        for record in await database.fetch(EVENTS_BY_NIDS, list(by_redaction)):
            by_redaction[record["event_nid"]].set_redacted(event_row(record))
    return rows


class EventStore:
    """Read events of any age. Every reader gets rows of its own; none of them is shared."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_ids(self, event_ids: Iterable[str]) -> dict[str, EventRow]:
        """Find events, outliers and rejected ones too, by their ids; those not known are left out."""
        wanted = list(event_ids)
        if not wanted:
            return {}
        rows = await self._rows(await self._database.fetch(_BY_IDS, wanted))
        return {row.event_id: row for row in rows}

    async def by_nids(self, event_nids: Iterable[int]) -> dict[int, EventRow]:
        """Find events by their integers."""
        wanted = list(event_nids)
        if not wanted:
            return {}
        rows = await self._rows(await self._database.fetch(EVENTS_BY_NIDS, wanted))
        return {row.event_nid: row for row in rows}

    async def nids_of(self, event_ids: Sequence[str]) -> dict[str, int]:
        """Give the integers of those events that are stored."""
        records = await self._database.fetch(_NIDS, event_ids)
        return {record["event_id"]: record["event_nid"] for record in records}

    async def auth_chains(self, event_nids: Sequence[int]) -> dict[int, bytes | None]:
        """Give the stored auth chain (a roaring bitmap) of each event."""
        records = await self._database.fetch(_AUTH_CHAINS, event_nids)
        return {record["event_nid"]: record["auth_chain"] for record in records}

    async def backwards(self, room_nid: int, *, upto: int, after: int, limit: int) -> list[EventRow]:
        """Read the timeline from ``upto`` (included) back to ``after`` (not included), newest first."""
        return await self._rows(await self._database.fetch(_BACKWARDS, room_nid, upto, after, limit))

    async def forwards(self, room_nid: int, *, after: int, upto: int, limit: int) -> list[EventRow]:
        """Read the timeline after ``after`` up to ``upto`` (included), oldest first."""
        return await self._rows(await self._database.fetch(_FORWARDS, room_nid, after, upto, limit))

    async def nearest(
        self, room_nid: int, ts_ms: int, *, forwards: bool, spans: Sequence[tuple[int, int]]
    ) -> tuple[str, int] | None:
        """Find the event nearest to a time, not before it (``forwards``) or not after it.

        Only within ``spans`` of the log (first and last position); those of ``_MOST_NEAR`` events are looked
        at. Gives its id and its time in milliseconds.
        """
        record = await self._database.fetchrow(
            _NEAREST_AFTER if forwards else _NEAREST_BEFORE,
            room_nid,
            ts_ms,
            [first for first, _ in spans],
            [last for _, last in spans],
        )
        return None if record is None else (record["event_id"], record["origin_server_ts"])

    async def latest_of_rooms(
        self, spans: Mapping[int, tuple[int, int]], *, limit: int
    ) -> dict[int, list[EventRow]]:
        """Read the last ``limit`` events of many rooms at once: per room_nid, oldest first.

        ``spans`` gives for each room the position after which to read, and the last one.
        """
        if not spans:
            return {}
        records = await self._database.fetch(
            _LATEST_OF_ROOMS,
            list(spans),
            [after for after, _ in spans.values()],
            [upto for _, upto in spans.values()],
            limit,
        )
        rooms: dict[int, list[EventRow]] = {}
        for row in await self._rows(records):
            rooms.setdefault(row.room_nid, []).append(row)
        return rooms

    async def first_of_rooms(self, spans: Sequence[TimelineSpan], *, limit: int) -> list[EventRow]:
        """Read the first ``limit`` events of parts of many rooms' timelines together, oldest first."""
        if not spans:
            return []
        return await self._rows(
            await self._database.fetch(
                _FIRST_OF_ROOMS,
                [span.room_nid for span in spans],
                [span.after for span in spans],
                [span.upto for span in spans],
                limit,
            )
        )

    async def store_outliers(
        self, rows: Sequence[EventRow], *, rejected: frozenset[int] = frozenset(), soft_failed: bool = False
    ) -> None:
        """Store events that nobody follows: auth events, rejected and soft-failed ones. Known ones stay."""
        if not rows:
            return
        await self._database.execute(
            _STORE_OUTLIERS,
            [row.event_nid for row in rows],
            [row.room_nid for row in rows],
            [row.event_id for row in rows],
            [row.type for row in rows],
            [row.state_key for row in rows],
            [row.sender for row in rows],
            [row.depth for row in rows],
            [row.origin_server_ts for row in rows],
            [row.event_nid in rejected for row in rows],
            [soft_failed] * len(rows),
            [row.snapshot_nid for row in rows],
            [row.auth_chain for row in rows],
            [row.pdu for row in rows],
        )

    async def _rows(self, records: Sequence[Record]) -> list[EventRow]:
        return await event_rows(self._database, records)
