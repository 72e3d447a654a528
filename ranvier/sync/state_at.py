"""The state of rooms at a position of the log: the current state with later changes undone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ranvier.log.tail import Tail
from ranvier.rooms.room import MEMBER, Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.event import StateKey
from ranvier.storage.events import EventStore
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import EventRow

State = Mapping[StateKey, EventRow]
Undo = dict[StateKey, int | None]
"""Per state key that changed later: the event_nid it had before (None: it was not there)."""


class StateAt:
    """Give the state of many rooms, each at a position, with at most two queries for all of them."""

    def __init__(self, *, rooms: Rooms, tail: Tail, events: EventStore, store: RoomStore) -> None:
        self._rooms = rooms
        self._tail = tail
        self._events = events
        self._store = store

    async def of(
        self, positions: Mapping[str, int], members: Mapping[str, Collection[str]] | None = None
    ) -> dict[str, State]:
        """Give the state after the event at each position; ``positions`` is per room id.

        With ``members`` (per room id) only these users' member events are in it, which costs nothing for all
        the others. The answer may be a room's live state: do not change it, and use it before awaiting again.
        """
        rooms = [await self._rooms.get(room_id) for room_id in positions]
        read = await self._read_undos(
            [r for r in rooms if self._undo(r, positions[r.room_id]) is None], positions
        )
        replaced: dict[int, EventRow] = {}
        while True:
            # The log may go on while the database answers, so what is to be undone is taken again each time.
            undos: dict[str, Undo] = {}
            for room in rooms:
                undo = self._undo(room, positions[room.room_id])  # {} is an answer: nothing to undo
                undos[room.room_id] = read[room.room_id] if undo is None else undo
            missing = {nid for undo in undos.values() for nid in undo.values() if nid is not None}
            missing -= replaced.keys()
            if not missing:
                return {
                    r.room_id: _undone(
                        r.state if members is None else r.state_with(members[r.room_id]),
                        undos[r.room_id],
                        replaced,
                        None if members is None else members[r.room_id],
                    )
                    for r in rooms
                }
            replaced.update(await self._events.by_nids(missing))

    def _undo(self, room: Room, pos: int) -> Undo | None:
        """Find what to undo in the tail; None where that does not say it."""
        if room.head <= pos:
            return {}
        if pos < self._tail.start:
            return None
        undo: Undo = {}
        for row in self._tail.events_of_room(room.room_id, pos, room.head):
            if not row.state_changes:
                continue
            if row.state_key is None or len(row.state_changes) != 1 or row.state_changes[0] != row.key:
                return None
            undo.setdefault(row.key, row.replaces_nid)
        return undo

    async def _read_undos(self, rooms: Iterable[Room], positions: Mapping[str, int]) -> dict[str, Undo]:
        room_ids = {room.room_nid: room.room_id for room in rooms}
        read = await self._store.changed_since({nid: positions[id_] for nid, id_ in room_ids.items()})
        return {room_id: read.get(room_nid, {}) for room_nid, room_id in room_ids.items()}


def _undone(
    state: State, undo: Undo, replaced: Mapping[int, EventRow], members: Collection[str] | None
) -> State:
    if not undo:
        return state
    older = dict(state)  # in one go, however many members there are
    for key, nid in undo.items():
        older.pop(key, None)
        if nid is not None and (members is None or key[0] != MEMBER or key[1] in members):
            older[key] = replaced[nid]
    return older
