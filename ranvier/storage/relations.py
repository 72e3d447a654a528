"""Which events relate to which: edits, threads, references, reactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database
from ranvier.storage.events import EVENT_COLUMNS, event_row, event_rows
from ranvier.wire.log_rows import EventRow

_EDIT_CANDIDATES: Final = 10
_REFERENCES: Final = 200

_IN_SPANS: Final = """EXISTS (
    SELECT FROM unnest({0}::bigint[], {1}::bigint[], {2}::bigint[]) AS v (room_nid, first, last)
    WHERE v.room_nid = x.room_nid AND x.pos BETWEEN v.first AND v.last)"""
_KINDS = """
SELECT DISTINCT x.target_id, x.rel_type FROM relations x
WHERE x.target_id = ANY ($1) AND x.rel_type IN ('m.replace', 'm.thread', 'm.reference')
"""
_THREADS = f"""
SELECT x.target_id, count(*) AS size, bool_or(x.sender = $2) AS participated, max(x.pos) AS latest
FROM unnest($1::text[], $4::bigint[]) AS w (target_id, room_nid)
JOIN relations x ON x.target_id = w.target_id AND x.room_nid = w.room_nid
WHERE x.rel_type = 'm.thread' AND x.pos IS NOT NULL AND NOT x.sender = ANY ($3)
  AND {_IN_SPANS.format("$5", "$6", "$7")}
GROUP BY x.target_id
"""
_BY_POS = f"SELECT {EVENT_COLUMNS} FROM events e JOIN rooms r USING (room_nid) WHERE e.pos = ANY ($1)"
_EDITS = f"""
SELECT w.target_id, {EVENT_COLUMNS}
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS w (target_id, sender, type, room_nid)
JOIN rooms r ON r.room_nid = w.room_nid
CROSS JOIN LATERAL (
    SELECT e.* FROM relations x JOIN events e ON e.event_nid = x.event_nid
    WHERE x.target_id = w.target_id AND x.rel_type = 'm.replace' AND x.room_nid = w.room_nid
      AND x.sender = w.sender AND x.type = w.type AND e.state_key IS NULL AND e.pos IS NOT NULL
      AND {_IN_SPANS.format("$5", "$6", "$7")}
    ORDER BY e.origin_server_ts DESC, e.event_id COLLATE "C" DESC LIMIT {_EDIT_CANDIDATES}
) e
"""
_REFERENCING = f"""
SELECT w.target_id, c.event_id
FROM unnest($1::text[], $2::bigint[]) AS w (target_id, room_nid)
CROSS JOIN LATERAL (
    SELECT e.event_id, e.pos FROM relations x JOIN events e ON e.event_nid = x.event_nid
    WHERE x.target_id = w.target_id AND x.rel_type = 'm.reference' AND x.room_nid = w.room_nid
      AND e.pos IS NOT NULL AND NOT x.sender = ANY ($3) AND {_IN_SPANS.format("$4", "$5", "$6")}
    ORDER BY e.pos LIMIT {_REFERENCES}
) c ORDER BY w.target_id, c.pos
"""
_ANNOTATIONS_BY = f"""
SELECT {EVENT_COLUMNS} FROM relations x JOIN events e ON e.event_nid = x.event_nid
JOIN rooms r ON r.room_nid = e.room_nid
WHERE x.target_id = $1 AND x.sender = $2 AND x.rel_type = 'm.annotation' AND x.type = $3 LIMIT {_REFERENCES}
"""


class Spans(NamedTuple):
    """What may be seen, as columns: in room ``room_nids[i]`` the positions ``firsts[i]`` to ``lasts[i]``."""

    room_nids: list[int]
    firsts: list[int]
    lasts: list[int]


class ThreadRow(NamedTuple):
    """How many events a thread has, whether the asking user wrote one, and its newest."""

    size: int
    participated: bool
    latest: EventRow


class RelationStore:
    """Read relations. A redacted event relates to nothing (its rows are removed when it is redacted)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def kinds(self, target_ids: Sequence[str]) -> dict[str, set[str]]:
        """Give the kinds of relation, of those that are summarised, that point at each event."""
        kinds: dict[str, set[str]] = {}
        for record in await self._database.fetch(_KINDS, target_ids):
            kinds.setdefault(record["rel_type"], set()).add(record["target_id"])
        return kinds

    async def threads(
        self, targets: Sequence[EventRow], *, user_id: str, ignored: Sequence[str], spans: Spans
    ) -> dict[str, ThreadRow]:
        """Summarise the threads under some events, without what ignored users wrote."""
        records = await self._database.fetch(
            _THREADS,
            [row.event_id for row in targets],
            user_id,
            ignored,
            [row.room_nid for row in targets],
            *spans,
        )
        if not records:
            return {}
        found = await self._database.fetch(_BY_POS, [record["latest"] for record in records])
        latest = {row.pos: row for row in await event_rows(self._database, found)}
        return {
            r["target_id"]: ThreadRow(r["size"], r["participated"], latest[r["latest"]])
            for r in records
            if r["latest"] in latest
        }

    async def edits(self, targets: Sequence[EventRow], *, spans: Spans) -> dict[str, list[EventRow]]:
        """Give the newest edits of some events by their own senders, the newest first."""
        records = await self._database.fetch(
            _EDITS,
            [row.event_id for row in targets],
            [row.sender for row in targets],
            [row.type for row in targets],
            [row.room_nid for row in targets],
            *spans,
        )
        edits: dict[str, list[EventRow]] = {}
        for record in records:
            edits.setdefault(record["target_id"], []).append(event_row(record))
        return edits

    async def references(
        self, targets: Sequence[EventRow], *, ignored: Sequence[str], spans: Spans
    ) -> dict[str, list[str]]:
        """Give the ids of the first events that refer to each of some events, in order."""
        records = await self._database.fetch(
            _REFERENCING,
            [row.event_id for row in targets],
            [row.room_nid for row in targets],
            ignored,
            *spans,
        )
        references: dict[str, list[str]] = {}
        for record in records:
            references.setdefault(record["target_id"], []).append(record["event_id"])
        return references

    async def annotations_by(self, target_id: str, sender: str, type: str) -> list[EventRow]:
        """Give the reactions of one user to an event, of one event type."""
        return [event_row(r) for r in await self._database.fetch(_ANNOTATIONS_BY, target_id, sender, type)]
