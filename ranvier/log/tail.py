"""The tail: the newest rows of the log in memory, found by position, by room and by user."""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ranvier.wire.log_rows import EventRow, LogRow, Row

RowT = TypeVar("RowT", EventRow, LogRow, Row)
Listener = Callable[[Sequence[Row]], None]

_Waiting = tuple[int, int, asyncio.Future[None]]
"""Position, ticket (those who wait for one position are woken in order) and who waits."""


class Tail:
    """Hold the rows after ``start`` up to ``pos``, without gaps.

    Bounded: when there are more than ``max_rows`` rows or ``max_bytes`` bytes the oldest go, and
    ``start`` moves up. Reading before ``start`` is for the database.
    Listeners are called with each piece that is applied, in the order in which they were added, before
    anybody who waits for its position goes on: caches first, then those who wake others. Nearly all rows are
    messages, and most listeners have nothing to do with these: they are not called for them (``changes``).
    """

    def __init__(self, *, max_rows: int = 20_000, max_bytes: int = 48 << 20) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._rows: deque[Row] = deque()
        self._bytes = 0
        self._events_of_room: dict[str, deque[EventRow]] = {}
        self._rows_of_room: dict[str, deque[LogRow]] = {}
        self._rows_of_user: dict[str, deque[LogRow]] = {}
        self._by_event_id: dict[str, EventRow] = {}
        self._related: dict[str, list[EventRow]] = {}
        self._target: dict[int, str] = {}  # to which event those are related that are, by position
        self._listeners: list[tuple[Listener, bool]] = []
        self._wanted: list[Callable[[], None]] = []
        self._waiting: list[_Waiting] = []
        self._tickets = 0
        self.start = 0
        self.pos = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        """Give the size of the rows that are held."""
        return self._bytes

    def listen(self, listener: Listener, *, changes: bool = False) -> None:
        """Have ``listener`` called with each piece of rows that is applied.

        With ``changes`` it gets no events that neither change the state of their room nor redact something,
        and is not called if nothing else is in a piece.
        """
        self._listeners.append((listener, changes))

    def on_wanted(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called whenever somebody waits for a position that was not applied yet."""
        self._wanted.append(listener)

    def reset(self, pos: int) -> None:
        """Begin anew after position ``pos``, empty."""
        self._rows.clear()
        for index in (
            self._events_of_room,
            self._rows_of_room,
            self._rows_of_user,
            self._by_event_id,
            self._related,
            self._target,
        ):
            index.clear()
        self._bytes = 0
        self.start = self.pos = pos
        self._wake()

    def apply(self, rows: Sequence[Row], last: int) -> None:
        """Add the rows of the positions after ``pos`` up to ``last``."""
        for row in rows:
            self._add(row)
        self.pos = last
        while len(self._rows) > self._max_rows or self._bytes > self._max_bytes:
            self._drop_oldest()
        changes = [row for row in rows if _is_change(row)]
        for listener, only_changes in self._listeners:
            if not only_changes:
                listener(rows)
            elif changes:
                listener(changes)
        self._wake()

    async def wait_for(self, pos: int, timeout_s: float = 5.0) -> bool:
        """Wait until ``pos`` was applied; False if that takes longer than ``timeout_s``."""
        if self.pos >= pos:
            return True
        for wanted in self._wanted:
            wanted()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tickets += 1
        entry = (pos, self._tickets, future)
        bisect.insort(self._waiting, entry, key=_order)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            # It may never come: a client names positions as far away as it likes.
            index = bisect.bisect_left(self._waiting, _order(entry), key=_order)
            if index < len(self._waiting) and self._waiting[index] is entry:
                del self._waiting[index]
        return True

    def _wake(self) -> None:
        reached = bisect.bisect_right(self._waiting, self.pos, key=lambda entry: entry[0])
        futures = [future for _, _, future in self._waiting[:reached]]
        del self._waiting[:reached]
        for future in futures:
            if not future.done():
                future.set_result(None)

    # -- reading: all of these give rows in order, with pos > after; `after` is not before `start` -----

    def events_of_room(self, room_id: str, after: int, upto: int | None = None) -> list[EventRow]:
        """Give the events of a room."""
        return _since(self._events_of_room.get(room_id), after, upto)

    def latest_of_room(self, room_id: str, upto: int, limit: int) -> list[EventRow]:
        """Give the last ``limit`` events of a room up to ``upto`` that the tail holds, in order."""
        found: list[EventRow] = []
        for row in reversed(self._events_of_room.get(room_id, ())):
            if row.pos <= upto:
                found.append(row)
                if len(found) == limit:
                    break
        found.reverse()
        return found

    def rows_of_room(self, room_id: str, after: int, upto: int | None = None) -> list[LogRow]:
        """Give the rows that concern a room and are not events (receipts)."""
        return _since(self._rows_of_room.get(room_id), after, upto)

    def rows_of_user(self, user_id: str, after: int, upto: int | None = None) -> list[LogRow]:
        """Give the rows that concern a user (account data, to-device messages, device lists, …)."""
        return _since(self._rows_of_user.get(user_id), after, upto)

    def rows_since(self, after: int, upto: int | None = None) -> list[Row]:
        """Give all rows."""
        return _since(self._rows, after, upto)

    def rooms_with_events(self, room_ids: Iterable[str], after: int) -> list[str]:
        """Give those of the rooms that have an event after ``after``."""
        events = self._events_of_room
        return [room_id for room_id in room_ids if (rows := events.get(room_id)) and rows[-1].pos > after]

    def rooms_with_rows(self, room_ids: Iterable[str], after: int) -> list[str]:
        """Give those of the rooms that a row which is no event concerns, after ``after``."""
        others = self._rows_of_room
        return [room_id for room_id in room_ids if (rows := others.get(room_id)) and rows[-1].pos > after]

    def rooms_active(self) -> Iterable[str]:
        """Give the rooms that have events here, in no order."""
        return self._events_of_room.keys()

    def event(self, event_id: str) -> EventRow | None:
        """Find an event by its id."""
        return self._by_event_id.get(event_id)

    def related_to(self, event_id: str) -> list[EventRow]:
        """Give the events of the tail that were sent with a relation to an event, in order."""
        return self._related.get(event_id, [])

    # -- keeping ---------------------------------------------------------------------------------------

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += row.size
        if isinstance(row, EventRow):
            events = self._events_of_room.get(row.room_id)
            if events is None:
                events = self._events_of_room[row.room_id] = deque()
            events.append(row)
            self._by_event_id[row.event_id] = row
            if (relation := row.relation) is not None:
                self._related.setdefault(relation[0], []).append(row)
                self._target[row.pos] = relation[0]
            if row.redacts is not None and (target_row := self._by_event_id.get(row.redacts)) is not None:
                target_row.set_redacted(row)
            return
        if row.room_id is not None:
            self._rows_of_room.setdefault(row.room_id, deque()).append(row)
        if row.user_id is not None:
            self._rows_of_user.setdefault(row.user_id, deque()).append(row)

    def _drop_oldest(self) -> None:
        row = self._rows.popleft()
        self._bytes -= row.size
        self.start = row.pos
        if isinstance(row, EventRow):
            _pop_first(self._events_of_room, row.room_id)
            self._by_event_id.pop(row.event_id, None)
            if (target := self._target.pop(row.pos, None)) is not None:
                related = self._related[target]
                related.remove(row)
                if not related:
                    del self._related[target]
            return
        if row.room_id is not None:
            _pop_first(self._rows_of_room, row.room_id)
        if row.user_id is not None:
            _pop_first(self._rows_of_user, row.user_id)


def _order(entry: _Waiting) -> tuple[int, int]:
    return entry[:2]


def _since(rows: deque[RowT] | None, after: int, upto: int | None) -> list[RowT]:
    if not rows or rows[-1].pos <= after:
        return []  # mostly: nothing new
    # Readers are mostly at the end: walk back from there.
    found: list[RowT] = []
    for row in reversed(rows):
        if row.pos <= after:
            break
        if upto is None or row.pos <= upto:
            found.append(row)
    found.reverse()
    return found


def _is_change(row: Row) -> bool:
    return isinstance(row, LogRow) or bool(row.state_changes) or row.redacts is not None


def _pop_first(index: dict[str, deque[RowT]], key: str) -> None:
    rows = index[key]
    rows.popleft()
    if not rows:
        del index[key]
