"""What the relations of other events add to an event: its newest edit, its thread, what refers to it.

Source: client-server API, "Aggregations of child events", "Event replacements", "Threading",
"Reference relations".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ranvier.log.tail import Tail
from ranvier.rooms.visibility import Sight
from ranvier.storage.relations import RelationStore, Spans
from ranvier.wire.log_rows import EventRow

REPLACE, THREAD, REFERENCE, ANNOTATION = "m.replace", "m.thread", "m.reference", "m.annotation"


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as one user sees it; ``count`` leaves the root out."""

    latest: EventRow
    count: int
    participated: bool


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the children of one event add to it, for one user."""

    edit: EventRow | None = None
    thread: Thread | None = None
    references: Sequence[str] = ()


class Relations:
    """Summarise the children of events: from the tail where it has all of them, else from the database."""

    def __init__(self, *, store: RelationStore, tail: Tail) -> None:
        self._store = store
        self._tail = tail

    async def bundles(
        self,
        rows: Sequence[EventRow],
        *,
        user_id: str,
        sights: Mapping[str, Sight],
        ignored: Collection[str] = (),
        from_tail: bool = False,
    ) -> dict[str, Bundle]:
        """Give the bundles of those events of a page that have children, by event id.

        ``sights`` has what the user sees of each room in question. Children by ``ignored`` users do not
        count. With ``from_tail`` the database is not asked.
        """
        bundles: dict[str, Bundle] = {}
        older: list[EventRow] = []
        for row in rows:
            if row.state_key is not None or row.room_id not in sights:
                continue  # "State events do not currently receive bundled aggregations."
            if row.pos > self._tail.start or from_tail:
                children = self._tail.related_to(row.event_id)
                sight = sights[row.room_id]
                if children and (bundle := _bundle(row, children, user_id, sight, ignored)) is not None:
                    bundles[row.event_id] = bundle
            else:
                older.append(row)
        if older:
            bundles |= await self._stored(older, user_id, sights, ignored)
        return bundles

    async def _stored(
        self, rows: Sequence[EventRow], user_id: str, sights: Mapping[str, Sight], ignored: Collection[str]
    ) -> dict[str, Bundle]:
        kinds = await self._store.kinds([row.event_id for row in rows])
        if not kinds:
            return {}
        wanted = {
            kind: [row for row in rows if row.event_id in ids and may_have(row, kind)]
            for kind, ids in kinds.items()
        }
        spans = spans_of(rows, sights)
        edits: dict[str, EventRow] = {}
        if targets := wanted.get(REPLACE):
            for event_id, candidates in (await self._store.edits(targets, spans=spans)).items():
                if (edit := next((row for row in candidates if _replaces(row)), None)) is not None:
                    edits[event_id] = edit
        threads: dict[str, Thread] = {}
        if targets := wanted.get(THREAD):
            senders = {row.event_id: row.sender for row in targets}
            found = await self._store.threads(targets, user_id=user_id, ignored=list(ignored), spans=spans)
            for event_id, t in found.items():
                threads[event_id] = Thread(t.latest, t.size, t.participated or senders[event_id] == user_id)
        references: dict[str, list[str]] = {}
        if targets := wanted.get(REFERENCE):
            references = await self._store.references(targets, ignored=list(ignored), spans=spans)
        return {
            event_id: Bundle(edits.get(event_id), threads.get(event_id), references.get(event_id, ()))
            for event_id in {*edits, *threads, *references}
        }


def spans_of(rows: Sequence[EventRow], sights: Mapping[str, Sight]) -> Spans:
    """Give what may be seen of the rooms of some events, for the database."""
    spans = Spans([], [], [])
    for room_id, room_nid in {row.room_id: row.room_nid for row in rows}.items():
        for span in sights[room_id].spans:
            spans.room_nids.append(room_nid)
            spans.firsts.append(span.first)
            spans.lasts.append(span.last)
    return spans


def spans_in(room_nid: int, sight: Sight) -> Spans:
    """Give what may be seen of one room, for the database."""
    spans = sight.spans
    return Spans([room_nid] * len(spans), [span.first for span in spans], [span.last for span in spans])


def visible_thread_roots(rows: Iterable[EventRow], sight: Sight) -> list[EventRow]:
    """Give those events that are roots of threads by the rules and may be seen."""
    return [row for row in rows if row.state_key is None and may_have(row, THREAD) and sight.sees(row.pos)]


def may_have(row: EventRow, kind: str) -> bool:
    """Tell whether children of a kind mean anything for an event."""
    relation = row.relation
    if kind == REPLACE:
        # "The original event must not, itself, have a rel_type of m.replace"; "If the original event is
        # redacted, any m.replace relationship should not be bundled with it"
        return (relation is None or relation[1] != REPLACE) and row.redacted_because is None
    if kind == THREAD:
        # "It is not possible to create a thread from an event which itself is the child of an event
        # relationship"
        return relation is None
    return True


def _replaces(row: EventRow) -> bool:
    """Tell whether an edit has what replaces the content ("once decrypted" no server can know)."""
    return row.type == "m.room.encrypted" or isinstance(row.event.content.get("m.new_content"), dict)


def _bundle(
    target: EventRow, children: Sequence[EventRow], user_id: str, sight: Sight, ignored: Collection[str]
) -> Bundle | None:
    edit: EventRow | None = None
    in_thread: list[EventRow] = []
    references: list[str] = []
    for child in children:
        relation = child.relation
        if (
            relation is None
            or child.room_nid != target.room_nid
            or child.redacted_because is not None
            or not sight.sees(child.pos)
        ):
            continue
        kind = relation[1]
        if kind == REPLACE:
            if _is_edit_of(target, child) and (edit is None or _recency(child) > _recency(edit)):
                edit = child
        elif child.sender in ignored:
            continue
        elif kind == THREAD:
            in_thread.append(child)
        elif kind == REFERENCE:
            references.append(child.event_id)
    edit = edit if may_have(target, REPLACE) else None
    if not may_have(target, THREAD):
        in_thread = []
    if edit is None and not in_thread and not references:
        return None
    thread = None
    if in_thread:
        participated = target.sender == user_id or any(row.sender == user_id for row in in_thread)
        thread = Thread(in_thread[-1], len(in_thread), participated)
    return Bundle(edit, thread, references)


def _is_edit_of(target: EventRow, child: EventRow) -> bool:
    same = child.sender == target.sender and child.type == target.type
    return same and child.state_key is None and _replaces(child)


def _recency(row: EventRow) -> tuple[int, str]:
    """Order edits: "comparing origin_server_ts; if identical, the lexicographically largest event_id"."""
    return row.origin_server_ts, row.event_id
