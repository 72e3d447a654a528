"""The rooms that this process holds in memory, kept at the head of the log."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from ranvier.log.tail import Tail
from ranvier.rooms.room import Room
from ranvier.spec.errors import not_found
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import PURGED_ROOM, EventRow, Row

_SLICE = 1000


class Rooms:
    """Load rooms on first use, follow the log for them, and let go of those used longest ago.

    Bounded by ``max_state``, the number of state events held over all rooms.
    """

    def __init__(self, *, store: RoomStore, tail: Tail, max_state: int = 200_000) -> None:
        self._store = store
        self._tail = tail
        self._max_state = max_state
        self._held = 0
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Room | None]] = {}
        self._purges = 0
        tail.listen(self._apply)

    @property
    def rooms_held(self) -> int:
        """Give the number of rooms in memory."""
        return len(self._rooms)

    @property
    def state_held(self) -> int:
        """Give the number of state events held over all rooms."""
        return self._held

    async def find(self, room_id: str) -> Room | None:
        """Give a room, or None if this server does not know it."""
        room = self._rooms.get(room_id)
        if room is not None:
            self._rooms.move_to_end(room_id)
            return room
        if "\0" in room_id:
            return None  # PostgreSQL's text does not hold it
        # Many may ask at once for a room that is not held: one reads it.
        task = self._loading.get(room_id)
        if task is None:
            task = self._loading[room_id] = asyncio.create_task(self._load(room_id))
            task.add_done_callback(lambda _: self._loading.pop(room_id, None))
        return await asyncio.shield(task)

    async def get(self, room_id: str) -> Room:
        """Give a room. Raises 404 ``M_NOT_FOUND``."""
        room = await self.find(room_id)
        if room is None:
            raise not_found("This server does not know that room")
        return room

    def held(self, room_id: str) -> Room | None:
        """Give a room if it is in memory."""
        return self._rooms.get(room_id)

    def drop(self, room_id: str) -> None:
        """Forget a room, so that the next use loads it anew."""
        room = self._rooms.pop(room_id, None)
        if room is not None:
            self._held -= len(room.state)

    async def _load(self, room_id: str) -> Room | None:
        while True:
            followed, purges = self._tail.pos, self._purges
            loaded = await self._store.load(room_id)
            if loaded is None:
                return None
            room = Room.without_state(loaded, ROOM_VERSIONS[loaded.stored.version])
            for first in range(0, len(loaded.state), _SLICE):
                room.add_state(loaded.state[first : first + _SLICE])
                await asyncio.sleep(0)
            # What was read is at least as new as the tail was then, however old the room's newest event is.
            if self._tail.start > max(room.head, followed):
                continue  # the log went on by more than the tail holds
            for row in self._tail.events_of_room(room_id, room.head):
                self._move_on(room, row)
            if room.stale or purges != self._purges:
                continue
            self._keep(room)
            return room

    def _keep(self, room: Room) -> None:
        self._rooms[room.room_id] = room
        self._held += len(room.state)
        while self._held > self._max_state and len(self._rooms) > 1:
            _, oldest = self._rooms.popitem(last=False)
            self._held -= len(oldest.state)

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not isinstance(row, EventRow):
                if row.kind == PURGED_ROOM and row.room_id is not None:
                    self._purges += 1
                    self.drop(row.room_id)
                continue
            room = self._rooms.get(row.room_id)
            if room is None:
                continue
            before = len(room.state)
            self._move_on(room, row)
            self._held += len(room.state) - before
            if room.stale:
                self.drop(row.room_id)

    def _move_on(self, room: Room, row: EventRow) -> None:
        room.apply(row)
        if row.redacts is not None:
            self._redact(room, row, row.redacts)

    def _redact(self, room: Room, because: EventRow, event_id: str) -> None:
        target = self._tail.event(event_id)
        if target is not None:  # it says whether it is state, and which: no need to look through all of it
            in_force = room.state.get(target.key) if target.state_key is not None else None
            candidates = [] if in_force is None else [in_force]
        else:
            candidates = list(room.state.values())
        for state_row in candidates:
            if state_row.event_id == event_id:
                state_row.set_redacted(because)
