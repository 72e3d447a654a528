"""Which events relate to which: edits, threads, references, reactions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from ranvier.storage.database import Database
from ranvier.storage.events import EVENT_COLUMNS, event_row, event_rows
from ranvier.wire.log_rows import EventRow

_EDIT_CANDIDATES: Final = 10
_REFERENCES: Final = 200
RECURSION_DEPTH: Final = 3
"""How many steps of relations a recursive search follows."""
_MOST_REACHED: Final = 5000

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
_RELATIONS_TO = """
SELECT DISTINCT x.target_id, x.rel_type, x.sender FROM relations x
WHERE x.target_id = ANY ($1) AND x.pos IS NOT NULL
"""
_COLUMNS: Final = "x.event_nid, x.room_nid, x.pos, x.rel_type, x.type, x.sender"
_DIRECT: Final = f"SELECT {_COLUMNS} FROM relations x WHERE x.target_id = $1 AND x.room_nid = $2"
_REACHED: Final = f"""
    SELECT DISTINCT ON (event_nid) * FROM (
        WITH RECURSIVE reached AS (
            SELECT {_COLUMNS}, 1 AS depth FROM relations x WHERE x.target_id = $1 AND x.room_nid = $2
            UNION ALL
            SELECT {_COLUMNS}, reached.depth + 1
            FROM reached JOIN events child ON child.event_nid = reached.event_nid
            JOIN relations x ON x.target_id = child.event_id AND x.room_nid = $2
            WHERE reached.depth < {RECURSION_DEPTH}
        )
        SELECT * FROM reached LIMIT {_MOST_REACHED}
    ) any_depth
"""
_PAGE = f"""
SELECT {EVENT_COLUMNS} FROM (
    SELECT x.event_nid FROM ({{source}}) x
    WHERE x.pos > $3 AND x.pos <= $4 AND ($5::text IS NULL OR x.rel_type = $5)
      AND ($6::text IS NULL OR x.type = $6) AND NOT x.sender = ANY ($7)
      AND {_IN_SPANS.format("$8", "$9", "$10")}
    ORDER BY x.pos {{order}} LIMIT $11
) page JOIN events e USING (event_nid) JOIN rooms r ON r.room_nid = e.room_nid ORDER BY e.pos {{order}}
"""
_PAGES: Final = {
    (recurse, backwards): _PAGE.format(
        source=_REACHED if recurse else _DIRECT, order="DESC" if backwards else "ASC"
    )
    for recurse in (False, True)
    for backwards in (False, True)
}
_THREAD_ROOTS = f"""
SELECT t.latest, {EVENT_COLUMNS} FROM (
    SELECT x.target_id, max(x.pos) AS latest, bool_or(x.sender = $3) AS wrote FROM relations x
    WHERE x.room_nid = $1 AND x.rel_type = 'm.thread' AND x.pos IS NOT NULL AND NOT x.sender = ANY ($5)
      AND {_IN_SPANS.format("$6", "$7", "$8")}
    GROUP BY x.target_id
) t JOIN events e ON e.event_id = t.target_id AND e.room_nid = $1 JOIN rooms r ON r.room_nid = e.room_nid
WHERE t.latest <= $2 AND e.pos IS NOT NULL AND (NOT $4 OR t.wrote OR e.sender = $3)
ORDER BY t.latest DESC LIMIT $9
"""


class Spans(NamedTuple):
    """What may be seen, as columns: in room ``room_nids[i]`` the positions ``firsts[i]`` to ``lasts[i]``."""

    room_nids: list[int]
    firsts: list[int]
    lasts: list[int]


class WantedRelations(NamedTuple):
    """Which events that relate to ``target_id`` to read; positions after ``after`` up to ``upto``."""

    target_id: str
    room_nid: int
    after: int
    upto: int
    limit: int
    backwards: bool = True
    recurse: bool = False
    rel_type: str | None = None
    type: str | None = None
    ignored: Collection[str] = ()


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

    async def relations_to(self, target_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Give, per event, ``(rel_type, sender)`` of what relates to it."""
        relations: dict[str, list[tuple[str, str]]] = {}
        for record in await self._database.fetch(_RELATIONS_TO, target_ids):
            relations.setdefault(record["target_id"], []).append((record["rel_type"], record["sender"]))
        return relations

    async def page(self, wanted: WantedRelations, *, spans: Spans) -> list[EventRow]:
        """Read events that relate to one event, in the order asked for."""
        records = await self._database.fetch(
            _PAGES[wanted.recurse, wanted.backwards],
            wanted.target_id,
            wanted.room_nid,
            wanted.after,
            wanted.upto,
            wanted.rel_type,
            wanted.type,
            list(wanted.ignored),
            *spans,
            wanted.limit,
        )
        return await event_rows(self._database, records)

    async def thread_roots(
        self,
        room_nid: int,
        *,
        user_id: str,
        participated: bool,
        upto: int,
        ignored: Collection[str],
        spans: Spans,
        limit: int,
    ) -> list[tuple[int, EventRow]]:
        """Read the roots of threads by their newest events up to ``upto``, newest first.

        Gives the position of that newest event with each root. With ``participated`` only threads that the
        user began or wrote in.
        """
        records = await self._database.fetch(
            _THREAD_ROOTS, room_nid, upto, user_id, participated, list(ignored), *spans, limit
        )
        rows = await event_rows(self._database, records)
        return [(record["latest"], row) for record, row in zip(records, rows, strict=True)]
