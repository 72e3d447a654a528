"""Writing into a room whose history has more ends than one event may follow."""

from __future__ import annotations

from pyroaring import BitMap64

from ranvier.rooms.draft import MAX_PREV_EVENTS, Base, Draft
from ranvier.rooms.fork_state import ForkStates, State, state_after, stored_state
from ranvier.rooms.room import Room
from ranvier.wire.log_rows import EventRow


class ManyEnds:
    """Let an event of ours follow as many ends as it may, and resolve with those that are left.

    The state before that event is that of the ends which it follows, and no other: so every server of
    the room computes it. The room's current state is that of all its ends.
    """

    def __init__(self, *, forks: ForkStates) -> None:
        self._forks = forks

    async def base(self, room: Room) -> Base | None:
        """Choose what the next event of ours follows; None where it is simply all there is."""
        if len(room.extremities) <= MAX_PREV_EVENTS:
            return None
        # Deep ends first: what they build on is reached through them.
        ends = sorted(room.extremities, key=lambda row: (-row.depth, row.event_id))
        ends, left = ends[:MAX_PREV_EVENTS], ends[MAX_PREV_EVENTS:]
        rows = dict(room.state)
        current = stored_state(room.snapshot_nid, room.snapshot_steps)
        before = await self._resolve(room, [state_after(row) for row in ends], {})
        changes = await self._forks.differences(current, before, current=rows, fresh={})
        snapshot = await self._forks.snapshot_of(before, room.room_nid, len(rows))
        for key, row in changes.items():
            if row is None:
                del rows[key]
            else:
                rows[key] = row
        return Base(ends, left, rows, snapshot, before.unstored())

    async def settle(self, draft: Draft, base: Base) -> None:
        """Resolve what a draft on ``base`` made with the ends that are left."""
        room = draft.room
        fresh = {row.event_nid: row for row in draft.events}
        rows = (draft.state.row(key) for key in draft.state)
        ours = State(snapshot=draft.snapshot, nids=BitMap64(row.event_nid for row in rows if row))
        states = [ours, *(state_after(row) for row in base.left)]
        resolved = await self._resolve(room, states, fresh)
        current = stored_state(room.snapshot_nid, room.snapshot_steps)
        changes = await self._forks.differences(current, resolved, current=room.state, fresh=fresh)
        snapshot = await self._forks.snapshot_of(resolved, room.room_nid, len(room.state))
        draft.settle(changes, snapshot=snapshot, pending=resolved.unstored())

    async def _resolve(self, room: Room, states: list[State], fresh: dict[int, EventRow]) -> State:
        return await self._forks.resolve(room.version, states, current=room.state, fresh=fresh)
