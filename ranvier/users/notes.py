"""The newest events of rooms as push rules see them: made once, shared by all users who count them."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.room import Room
from ranvier.spec.event import Event
from ranvier.spec.push_rules import Actions, CompiledRules, PushView, highlights, notifies
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow

MAIN: Final = "main"
MAX_EVENTS: Final = 200
"""How many events of one room are kept; older ones are for ``unread_gaps`` to read."""
_MAX_HOPS: Final = 3
_ROOMS_AT_ONCE: Final = 10


class Outcome(NamedTuple):
    """Whether an event notifies, and whether it is highlighted."""

    notifies: bool
    highlights: bool


def outcome_of(actions: Actions | None) -> Outcome:
    """Give what the actions of a push rule come to."""
    return Outcome(notifies(actions), highlights(actions))


class Note:
    """One event: where it is, which thread it belongs to, and its view for push rules."""

    __slots__ = ("_outcomes", "_view", "pos", "redacts_pos", "row", "sender", "thread")

    def __init__(self, row: EventRow, thread: str, redacts_pos: int | None) -> None:
        self.row = row
        self.pos = row.pos
        self.sender = row.sender
        self.thread = thread
        self.redacts_pos = redacts_pos
        self._view: PushView | None = None
        self._outcomes: dict[CompiledRules, Outcome | None] = {}

    def outcome(self, rules: CompiledRules, room: Room) -> Outcome | None:
        """Give what some rules make of it for all but its sender; None where that hangs on the user."""
        try:
            return self._outcomes[rules]
        except KeyError:
            view = self.view(room)
            personal = rules.is_personal(view)
            outcome = self._outcomes[rules] = None if personal else outcome_of(rules.evaluate(view, ""))
            return outcome

    def view(self, room: Room) -> PushView:
        """Give the event's view, by the room as it is when the first user asks."""
        if self._view is None:
            self._view = view_of(self.row, room)
        return self._view

    def set_redacted(self, because: EventRow) -> None:
        """Let readers see the redacted form from now on."""
        self.row.set_redacted(because)
        self._view = None
        self._outcomes.clear()


def view_of(row: EventRow, room: Room) -> PushView:
    """Make the view of an event as readers may see it."""
    event = row.event
    if row.redacted_because is not None:
        event = Event(row.visible_pdu, row.event_id, row.version)
    return PushView(event, member_count=len(room.joined), power_levels=room.power_levels)


class _RoomNotes:
    """The events of one room in ``(start, upto]``, in order; at most ``MAX_EVENTS``."""

    __slots__ = ("notes", "positions", "start", "upto")

    def __init__(self, start: int, upto: int) -> None:
        self.start = start
        self.upto = upto
        self.notes: list[Note] = []
        self.positions: list[int] = []

    def add(self, notes: Iterable[Note], upto: int) -> None:
        for note in notes:
            if note.redacts_pos is not None:
                self._redact(note.redacts_pos, note.row)
            self.notes.append(note)
            self.positions.append(note.pos)
        self.upto = upto
        surplus = len(self.notes) - MAX_EVENTS
        if surplus > 0:
            self.start = self.positions[surplus - 1]
            del self.notes[:surplus]
            del self.positions[:surplus]

    def _redact(self, pos: int, because: EventRow) -> None:
        index = bisect_left(self.positions, pos)
        if index < len(self.positions) and self.positions[index] == pos:
            self.notes[index].set_redacted(because)

    def after(self, pos: int) -> list[Note]:
        if not self.positions or self.positions[-1] <= pos:
            return []
        return self.notes[bisect_right(self.positions, pos) :]

    @property
    def full(self) -> bool:
        return len(self.notes) >= MAX_EVENTS


class RoomNotes:
    """Give the notes of rooms after a position, from memory, the tail or the database in that order.

    Bounded by ``max_notes`` over all rooms: those used longest ago go.
    """

    def __init__(self, *, tail: Tail, events: EventStore, max_notes: int = 4000) -> None:
        self._tail = tail
        self._events = events
        self._max_notes = max_notes
        self._rooms: OrderedDict[str, _RoomNotes] = OrderedDict()
        self._held = 0
        # All who wait in a room ask for the same, one after the other.
        self._latest: tuple[str, int, int, list[Note]] = ("", 0, 0, [])

    def known(self, room_id: str, after: int, upto: int) -> list[Note] | None:
        """Give the notes after ``after`` up to ``upto`` at least; None if that takes a wait.

        The list is shared: do not change it.
        """
        known_room, known_after, known_upto, notes = self._latest
        if after == known_after and upto == known_upto and room_id == known_room:
            return notes
        room = self._rooms.get(room_id)
        if room is None or after < room.start:
            return None
        if room.upto < upto and not self._extend(room_id, room):
            return None
        self._rooms.move_to_end(room_id)
        if after < room.start:
            return None
        notes = room.after(after)
        self._latest = (room_id, after, upto, notes)
        return notes

    def _extend(self, room_id: str, room: _RoomNotes) -> bool:
        """Add what the tail brought since, if that takes no waiting."""
        if room.upto < self._tail.start:
            return False
        upto = self._tail.pos
        rows = self._tail.events_of_room(room_id, room.upto, upto)
        notes: list[Note] = []
        for row in rows:
            note = self._note_at_once(row)
            if note is None:
                return False
            notes.append(note)
        self._add(room, notes, upto)
        return True

    def _add(self, room: _RoomNotes, notes: Sequence[Note], upto: int) -> None:
        before = len(room.notes)
        room.add(notes, upto)
        self._held += len(room.notes) - before
        self._trim(room)

    def _trim(self, kept: _RoomNotes) -> None:
        while self._held > self._max_notes:
            room_id, oldest = next(iter(self._rooms.items()))
            if oldest is kept:
                return
            del self._rooms[room_id]
            self._held -= len(oldest.notes)

    # -- reading what takes a wait -----------------------------------------------------------------

    async def load(self, after_by_room: Mapping[str, tuple[int, int]]) -> dict[str, list[Note]]:
        """Give the notes of many rooms, at most the newest ``MAX_EVENTS``: by room id, ``(room_nid, after)``.

        One query for a handful of rooms, so that the event loop of others does not stall on the answer.
        """
        found: dict[str, list[Note]] = {}
        wanted = list(after_by_room.items())
        for start in range(0, len(wanted), _ROOMS_AT_ONCE):
            some = dict(wanted[start : start + _ROOMS_AT_ONCE])
            found.update(await self._load(some))
            await asyncio.sleep(0)
        return found

    async def _load(self, after_by_room: Mapping[str, tuple[int, int]]) -> dict[str, list[Note]]:
        upto = self._tail.pos
        rows: dict[str, list[EventRow]] = {}
        starts: dict[str, int] = {}
        stored: dict[int, tuple[int, int]] = {}
        for room_id, (room_nid, after) in after_by_room.items():
            starts[room_id] = begin = self._begin(room_id, after)
            if begin >= self._tail.start:
                rows[room_id] = self._tail.events_of_room(room_id, begin, upto)[-MAX_EVENTS:]
            else:
                starts[room_id] = after
                stored[room_nid] = (after, upto)
        by_nid = await self._events.latest_of_rooms(stored, limit=MAX_EVENTS)
        for room_id, (room_nid, _) in after_by_room.items():
            if room_nid in stored:
                # The tail's row of an event is the one that learns of a redaction.
                some = by_nid.get(room_nid, ())
                rows[room_id] = [self._tail.event(row.event_id) or row for row in some]
        notes = await self.notes_of([row for some in rows.values() for row in some])
        found: dict[str, list[Note]] = {}
        for room_id, (_, after) in after_by_room.items():
            some_notes = [notes[row.pos] for row in rows[room_id]]
            found[room_id] = self._keep(room_id, starts[room_id], some_notes, upto, after)
        return found

    def _begin(self, room_id: str, after: int) -> int:
        """Give from where on a room has to be read: from where what is held of it ends, if that is enough."""
        room = self._rooms.get(room_id)
        if room is None or room.upto < self._tail.start or (after < room.start and not room.full):
            return after
        return room.upto

    def _keep(self, room_id: str, start: int, notes: Sequence[Note], upto: int, after: int) -> list[Note]:
        room = self._rooms.get(room_id)
        if room is None or room.upto != start:
            if room is not None:
                self._held -= len(room.notes)
            start = notes[0].pos - 1 if len(notes) >= MAX_EVENTS else start
            room = _RoomNotes(start, upto)
            self._rooms[room_id] = room
        self._rooms.move_to_end(room_id)
        self._add(room, notes, upto)
        return room.after(after)

    # -- threads -----------------------------------------------------------------------------------

    def _note_at_once(self, row: EventRow) -> Note | None:
        """Make the note of an event if all that it refers to is in the tail."""
        redacts_pos = None
        if row.redacts is not None:
            target = self._tail.event(row.redacts)
            if target is None:
                return None
            redacts_pos = target.pos
        thread = self._thread_at_once(row)
        return None if thread is None else Note(row, thread, redacts_pos)

    def _thread_at_once(self, row: EventRow) -> str | None:
        for _ in range(_MAX_HOPS + 1):
            relation = row.relation
            if relation is None:
                return MAIN
            if relation[1] == "m.thread":
                return relation[0]
            parent = self._tail.event(relation[0])
            if parent is None:
                return None
            if parent.room_id != row.room_id:
                return MAIN
            row = parent
        return MAIN

    async def notes_of(self, rows: Sequence[EventRow]) -> dict[int, Note]:
        """Make the notes of events, reading what they refer to: a query per hop, for all of them."""
        known = {row.event_id: row for row in rows}
        wanted = {row.redacts for row in rows if row.redacts is not None}
        reached = {row.event_id: row for row in rows if row.relation is not None}
        for _ in range(_MAX_HOPS):
            wanted |= {r.relation[0] for r in reached.values() if r.relation and r.relation[1] != "m.thread"}
            missing = []
            for event_id in wanted - known.keys():
                if (row := self._tail.event(event_id)) is not None:
                    known[event_id] = row
                else:
                    missing.append(event_id)
            known.update(await self._events.by_ids(missing))
            reached = {id_: known[id_] for id_ in wanted if id_ in known}
            wanted = set()
        return {row.pos: Note(row, _thread_of(row, known), _redacted_pos(row, known)) for row in rows}


def _redacted_pos(row: EventRow, known: Mapping[str, EventRow]) -> int | None:
    target = known.get(row.redacts) if row.redacts is not None else None
    return None if target is None else target.pos


def _thread_of(row: EventRow, known: Mapping[str, EventRow]) -> str:
    """Give the thread of an event: its root's id, or ``main``.

    "the server follows the event relationship until it finds a thread root via an m.thread relation …
    a maximum of 3 hops". Source: client-server API, "Marking notifications as read".
    """
    for _ in range(_MAX_HOPS + 1):
        relation = row.relation
        if relation is None:
            return MAIN
        if relation[1] == "m.thread":
            return relation[0]
        parent = known.get(relation[0])
        if parent is None or parent.room_id != row.room_id:
            return MAIN
        row = parent
    return MAIN
