"""The list of what a user was notified about: worked out anew from the newest events backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER, Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.push_rules import Actions, highlights, notifies
from ranvier.storage.events import EventStore
from ranvier.storage.unread import UnreadStore
from ranvier.users.account_data import IgnoredUsers
from ranvier.users.notes import Note, RoomNotes
from ranvier.users.push_rules import PushRules
from ranvier.users.unread import joined_at
from ranvier.wire.log_rows import EventRow

MAX_LIMIT: Final = 100
_PAGE: Final = 100
_MAX_PAGES: Final = 10
"""Events that one request looks at are at most ``_PAGE * _MAX_PAGES``; the next goes on from there."""
_MAX_ROOMS: Final = 2000


class Notification(NamedTuple):
    """An event that notified the user, what the rules say to do, and whether it was read since."""

    row: EventRow
    actions: Actions
    read: bool


class Page(NamedTuple):
    """Notifications, the newest first; ``next_pos`` is where the next page begins, None after the last."""

    notifications: list[Notification]
    next_pos: int | None


class Notifications:
    """Find what users were notified about."""

    def __init__(
        self,
        *,
        store: UnreadStore,
        events: EventStore,
        notes: RoomNotes,
        rooms: Rooms,
        memberships: Memberships,
        push_rules: PushRules,
        ignored: IgnoredUsers,
        tail: Tail,
    ) -> None:
        self._store = store
        self._events = events
        self._notes = notes
        self._rooms = rooms
        self._memberships = memberships
        self._push_rules = push_rules
        self._ignored = ignored
        self._tail = tail

    async def page(
        self, user_id: str, *, before: int | None = None, limit: int = 20, only_highlights: bool = False
    ) -> Page:
        """Give the newest notifications from rooms that the user is in, of events before a position.

        There may be fewer than ``limit``, even none, and more on the next page.
        """
        limit = min(limit, MAX_LIMIT)
        pos = self._tail.pos + 1 if before is None else min(before, self._tail.pos + 1)
        joined = [m for m in (await self._memberships.of(user_id)).values() if m.membership == "join"]
        joined.sort(key=lambda m: m.pos, reverse=True)
        nids = {m.room_id: m.room_nid for m in joined[:_MAX_ROOMS]}
        joins = await joined_at(self._store, self._memberships, user_id, nids)
        found: list[Notification] = []
        for _ in range(_MAX_PAGES):
            event_nids = await self._store.newest_before(list(nids.values()), pos, _PAGE)
            rows = (await self._events.by_nids(event_nids)).values()
            candidates = [row for row in rows if row.pos > joins[row.room_id]]
            for one in await self._notifying(user_id, candidates):
                if only_highlights and not highlights(one.actions):
                    continue
                if len(found) >= limit:
                    return Page(found, found[-1].row.pos)
                found.append(one)
            if len(event_nids) < _PAGE:
                return Page(found, None)
            pos = min(row.pos for row in rows)
        return Page(found, pos)

    async def _notifying(self, user_id: str, rows: list[EventRow]) -> list[Notification]:
        """Give those events that notify the user, the newest first."""
        rules, ignored = await self._push_rules.of(user_id), await self._ignored.of(user_id)
        notes = await self._notes.notes_of(rows)
        marks = await self._marks(user_id, {row.room_id for row in rows})
        found: list[Notification] = []
        for pos in sorted(notes, reverse=True):
            note = notes[pos]
            room = await self._rooms.find(note.row.room_id)
            if room is None or note.sender in ignored or note.row.redacted_because is not None:
                continue
            actions = rules.compiled.evaluate(note.view(room), user_id, _display_name(room, user_id))
            if actions is not None and notifies(actions):
                found.append(Notification(note.row, actions, _is_read(note, marks)))
        return found

    async def _marks(self, user_id: str, room_ids: set[str]) -> Mapping[tuple[str, str], int]:
        marks = await self._store.read_marks(user_id, list(room_ids))
        return {(mark.room_id, mark.thread_id): mark.pos for mark in marks}


def _is_read(note: Note, marks: Mapping[tuple[str, str], int]) -> bool:
    room_id = note.row.room_id
    return note.pos <= max(marks.get((room_id, ""), 0), marks.get((room_id, note.thread), 0))


def _display_name(room: Room, user_id: str) -> str | None:
    member = room.state.get((MEMBER, user_id))
    name = None if member is None else member.content.get("displayname")
    return name if isinstance(name, str) else None
