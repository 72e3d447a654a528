"""Events between where somebody's unread notifications were counted last and those that are in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.storage.events import EventStore, TimelineSpan
from ranvier.storage.unread import UnreadStore
from ranvier.users.notes import Note, RoomNotes

MAX_IN_ROOM: Final = 1000
"""Events of one room that are looked at to fill a gap: the newest."""
MAX_IN_ALL: Final = 20_000
"""Likewise for all rooms together: of many rooms less is looked at of each."""
_PAGE: Final = 100


class UnreadGaps:
    """Read gaps in pages, so that the event loop of others does not stall."""

    def __init__(self, *, store: UnreadStore, events: EventStore, notes: RoomNotes, tail: Tail) -> None:
        self._store = store
        self._events = events
        self._notes = notes
        self._tail = tail
        self._turns = Turns(1)

    async def pages(self, gaps: Sequence[TimelineSpan]) -> AsyncIterator[tuple[str, list[Note]]]:
        """Give the events of gaps, room by room and oldest first; each page in a turn of its own."""
        if not gaps:
            return
        most = min(MAX_IN_ROOM, MAX_IN_ALL // len(gaps))
        starts = await self._store.starts(gaps, most)
        for gap in gaps:
            after = starts.get(gap.room_nid, gap.after)
            while True:
                stored = await self._events.forwards(gap.room_nid, after=after, upto=gap.upto, limit=_PAGE)
                await self._turns.take()
                # The tail's row of an event is the one that learns of a redaction.
                rows = [self._tail.event(row.event_id) or row for row in stored]
                notes = await self._notes.notes_of(rows)
                yield gap.room_id, [notes[row.pos] for row in rows]
                if len(rows) < _PAGE:
                    break
                after = rows[-1].pos
