"""The window of a room's timeline that a sync answer shows: from the tail, else from the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ranvier.log.tail import Tail
from ranvier.spec.filters import RoomEventFilter
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow

DEFAULT_LIMIT = 10
MAX_LIMIT = 1000
"""What no filter gets more than; ``filter_timeline_limit`` may be less."""
_PAGES = 8

Wanted = Callable[[EventRow], bool]


class Window(NamedTuple):
    """The events of a room that are shown, and the position before the first of them.

    ``start`` is the position after which nothing was left out (of what the filter wants); ``limited`` that
    there is more between it and where the window should have begun.
    """

    rows: list[EventRow]
    limited: bool
    start: int


class Span(NamedTuple):
    """Where to look for a window: after ``after``, up to ``upto``."""

    room_id: str
    room_nid: int
    after: int
    upto: int


def event_filter(timeline: RoomEventFilter, ignored: frozenset[str]) -> Wanted | None:
    """Make the test that events of a timeline must pass; None where all do.

    Source: client-server API, "Ignoring Users": events of ignored users are left out, but for state events.
    """
    if timeline.is_everything and not ignored:
        return None

    def wanted(row: EventRow) -> bool:
        if row.state_key is None and row.sender in ignored:
            return False
        return timeline.is_everything or timeline.matches(
            row.type, row.sender, row.room_id, has_url=isinstance(row.content.get("url"), str)
        )

    return wanted


def cut(rows: list[EventRow], limit: int, wanted: Wanted | None, after: int) -> Window:
    """Make a window of the last ``limit`` wanted ones of the events that come after ``after``."""
    if wanted is not None:
        rows = [row for row in rows if wanted(row)]
    if len(rows) <= limit:
        return Window(rows, limited=False, start=after)
    shown = rows[len(rows) - limit :]
    first = rows[len(rows) - limit] if limit else None
    return Window(shown, limited=True, start=(first.pos if first else rows[-1].pos + 1) - 1)


class Windows:
    """Find the windows of many rooms: one query for all that the tail does not hold."""

    def __init__(self, *, tail: Tail, events: EventStore) -> None:
        self._tail = tail
        self._events = events

    async def latest(self, spans: Iterable[Span], limit: int, wanted: Wanted | None) -> dict[str, Window]:
        """Give the last ``limit`` wanted events of each span, per room id."""
        windows: dict[str, Window] = {}
        to_read: list[Span] = []
        for span in spans:
            window = self._from_tail(span, limit, wanted)
            if window is not None:
                windows[span.room_id] = window
            else:
                to_read.append(span)
        if to_read:
            windows.update(await self._read(to_read, limit, wanted))
        return windows

    def _from_tail(self, span: Span, limit: int, wanted: Wanted | None) -> Window | None:
        """Make the window of what the tail holds; None where that is not enough."""
        if span.after >= self._tail.start:
            rows = self._tail.events_of_room(span.room_id, span.after, span.upto)
            return cut(rows, limit, wanted, span.after)
        most = limit + 1 if wanted is None else (limit + 1) * _PAGES
        rows = self._tail.latest_of_room(span.room_id, span.upto, most)
        if rows and rows[0].type == "m.room.create":  # the room's whole history is here
            return cut(rows, limit, wanted, span.after)
        shown = rows if wanted is None else [row for row in rows if wanted(row)]
        if len(shown) > limit:
            return cut(rows, limit, wanted, span.after)
        return None

    async def _read(self, spans: Sequence[Span], limit: int, wanted: Wanted | None) -> dict[str, Window]:
        most = limit + 1 if wanted is None else (limit + 1) * _PAGES
        found = await self._events.latest_of_rooms(
            {span.room_nid: (span.after, span.upto) for span in spans}, limit=most
        )
        windows = {}
        for span in spans:
            rows = found.get(span.room_nid, [])
            window = cut(rows, limit, wanted, span.after)
            if len(rows) == most and not window.limited:
                # The filter left little of what was read, and there may be more before it.
                window = Window(window.rows, limited=True, start=rows[0].pos - 1)
            windows[span.room_id] = window
        return windows
