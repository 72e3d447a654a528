"""Pages of a room's history as one user sees it: from the tail, else from the database."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple, Protocol

from ranvier.log.tail import Tail
from ranvier.rooms.access import View
from ranvier.rooms.visibility import FIRST, LAST, Span
from ranvier.spec.filters import RoomEventFilter
from ranvier.storage.events import EventStore
from ranvier.storage.relations import RelationStore
from ranvier.wire.log_rows import EventRow

MAX_READ: Final = 2000
"""Events looked at for one page, wanted or not; then the client is given a token to go on from."""
_MOST_AT_ONCE: Final = 500
_PATIENCE_S: Final = 2.0

Wanted = Callable[[EventRow], bool]


class IgnoredUsers(Protocol):
    """Know whom users ignore."""

    async def of(self, user_id: str, /) -> Collection[str]:
        """Give the ids of the users whom a user ignores."""


class Page(NamedTuple):
    """Events in the order asked for; ``end`` is the position to go on from, None where there is no more."""

    rows: list[EventRow]
    end: int | None


class Timeline:
    """Read history in either direction."""

    def __init__(self, *, events: EventStore, tail: Tail, relations: RelationStore) -> None:
        self._events = events
        self._tail = tail
        self._relations = relations

    @property
    def now(self) -> int:
        """Position of the newest row of the log."""
        return self._tail.pos

    async def reach(self, pos: int) -> None:
        """Wait a moment for the log to come to a position that another worker told the client of."""
        await self._tail.wait_for(pos, _PATIENCE_S)

    async def backwards(
        self,
        view: View,
        *,
        upto: int,
        limit: int,
        after: int = FIRST,
        filter: RoomEventFilter,
        ignored: Collection[str] = (),
    ) -> Page:
        """Give the last ``limit`` events up to ``upto`` (included) and after ``after``, newest first."""
        page = _Page(filter, ignored, limit)
        for span in reversed(view.sight.spans):
            lowest, upper = max(span.first, after + 1), min(span.last, upto)
            while lowest <= upper:
                rows = await self._older(view, Span(lowest, upper), page.at_once)
                used = await self._take(page, rows)
                if not rows or (used == len(rows) and _is_first(rows[-1])):
                    break
                upper = rows[used - 1].pos - 1
                if page.is_full:
                    return Page(page.rows, upper)
        return Page(page.rows, None)

    async def forwards(
        self,
        view: View,
        *,
        after: int,
        limit: int,
        upto: int = LAST,
        filter: RoomEventFilter,
        ignored: Collection[str] = (),
    ) -> Page:
        """Give the first ``limit`` events after ``after`` up to ``upto`` (included), oldest first."""
        page = _Page(filter, ignored, limit)
        upto = min(upto, self._tail.pos)
        for span in view.sight.spans:
            lower, highest = max(span.first - 1, after), min(span.last, upto)
            while lower < highest:
                rows = await self._newer(view, Span(lower + 1, highest), page.at_once)
                used = await self._take(page, rows)
                if not rows:
                    break
                lower = rows[used - 1].pos
                if page.is_full:
                    return Page(page.rows, lower)
        return Page(page.rows, None)

    async def _take(self, page: _Page, rows: list[EventRow]) -> int:
        """Add the wanted ones of what was read, up to the limit; give how many were looked at."""
        if page.filter.needs_relations and rows:
            relations = await self._relations.relations_to([row.event_id for row in rows])
            return page.take(rows, lambda row: page.filter.matches_relations(relations.get(row.event_id, ())))
        return page.take(rows, None)

    async def _older(self, view: View, span: Span, count: int) -> list[EventRow]:
        """Read up to ``count`` events of a span, newest first."""
        room, tail = view.room, self._tail
        rows: list[EventRow] = []
        upper = span.last
        if upper > tail.start:
            rows = [r for r in tail.latest_of_room(room.room_id, upper, count) if r.pos >= span.first]
            rows.reverse()
            if len(rows) == count or span.first > tail.start:
                return rows
            if rows and _is_first(rows[-1]):
                return rows
            upper = min(tail.start, rows[-1].pos - 1 if rows else upper)
        rows += await self._events.backwards(
            room.room_nid, upto=upper, after=span.first - 1, limit=count - len(rows)
        )
        return rows

    async def _newer(self, view: View, span: Span, count: int) -> list[EventRow]:
        """Read up to ``count`` events of a span, oldest first."""
        room, tail = view.room, self._tail
        if span.first > tail.start:
            return tail.events_of_room(room.room_id, span.first - 1, span.last)[:count]
        return await self._events.forwards(room.room_nid, after=span.first - 1, upto=span.last, limit=count)


def _is_first(row: EventRow) -> bool:
    """Tell whether an event is the one that made its room: nothing comes before it."""
    return row.type == "m.room.create" and row.state_key == ""


class _Page:
    """A page in the making."""

    def __init__(self, filter: RoomEventFilter, ignored: Collection[str], limit: int) -> None:
        self.rows: list[EventRow] = []
        self.filter = filter
        self._limit = limit
        self._wanted = wanted_by(filter, ignored)
        self._read = 0

    @property
    def at_once(self) -> int:
        """How many events to read next."""
        missing = self._limit - len(self.rows)
        if self._wanted is None and not self.filter.needs_relations:
            return missing
        return min(_MOST_AT_ONCE, max(100, 2 * missing))

    @property
    def is_full(self) -> bool:
        """Whether to stop here: there are enough events, or enough were looked at."""
        return len(self.rows) >= self._limit or self._read >= MAX_READ

    def take(self, rows: list[EventRow], also: Wanted | None) -> int:
        used = 0
        for row in rows:
            if len(self.rows) >= self._limit:
                break
            used += 1
            if self._wanted is not None and not self._wanted(row):
                continue
            if also is None or also(row):
                self.rows.append(row)
        self._read += used
        return used


def wanted_by(filter: RoomEventFilter, ignored: Collection[str]) -> Wanted | None:
    """Make the test that an event must pass for a filter; None where every event does.

    Events of ignored users are left out, but for state events (client-server API, "Ignoring Users").
    """
    if filter.is_everything and not ignored:
        return None

    def wanted(row: EventRow) -> bool:
        if row.state_key is None and row.sender in ignored:
            return False
        has_url = filter.contains_url is not None and isinstance(row.content.get("url"), str)
        return filter.matches(row.type, row.sender, row.room_id, has_url=has_url)

    return wanted
