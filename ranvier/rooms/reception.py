"""Judge and place received events on one room as it stands; what is accepted becomes one write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ranvier.log.append import HeadMoved
from ranvier.rooms.draft import may_redact, state_change
from ranvier.rooms.fork_state import ForkStates, State, state_after, stored_state
from ranvier.rooms.outliers import RoomName, new_row
from ranvier.rooms.room import Room
from ranvier.spec.errors import AuthError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import (
    CREATE_KEY,
    POWER_LEVELS_KEY,
    auth_event_keys,
    check_auth,
    check_state_independent,
)
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.redaction import redact
from ranvier.storage.event_graph import EventGraphStore, Standing
from ranvier.storage.log import Redaction, Relation, RoomWrite, Snapshot, StateChange
from ranvier.storage.nids import Nids
from ranvier.wire.log_rows import EventRow

_REDACTION: Final = "m.room.redaction"


@dataclass(slots=True)
class Arrival:
    """One received event, and what was found out about it."""

    event: Event
    event_nid: int | None = None
    row: EventRow | None = None
    before: State | None = None

    @property
    def placed(self) -> tuple[EventRow, State]:
        """Its row and the state before it, once ``Reception.check`` looked at it."""
        assert self.row is not None
        assert self.before is not None
        return self.row, self.before


@dataclass(frozen=True, slots=True)
class References:
    """What was loaded for some arrivals, by event id.

    ``standings`` of them and of all that they follow or cite; ``rows`` of what they cite or redact, and of
    refused events through which they follow others; ``followed`` are those that stored events follow;
    ``redactions`` those that came before their targets.
    """

    standings: Mapping[str, Standing]
    rows: Mapping[str, EventRow]
    followed: frozenset[str] = frozenset()
    redactions: Mapping[str, Sequence[EventRow]] = field(default_factory=dict)


class _End(NamedTuple):
    event_nid: int
    after: State


class Reception:
    """Check arrivals one after the other, each on the room as the accepted ones before it left it.

    Everything is computed on the head that the room had in the beginning. When somebody else writes to the
    room meanwhile ``check`` raises HeadMoved, or the commit does.
    """

    def __init__(
        self, room: Room, *, references: References, forks: ForkStates, graph: EventGraphStore, nids: Nids
    ) -> None:
        self.events: list[EventRow] = []
        self._room = room
        self._head = room.head
        self._references = references
        self._forks = forks
        self._graph = graph
        self._nids = nids
        self._create = room.create
        self._state = stored_state(room.snapshot_nid, room.snapshot_steps)
        self._size = len(room.state)
        self._changed: dict[StateKey, EventRow | None] = {}
        self._levels = room.power_levels
        self._ends = {row.event_id: _End(row.event_nid, state_after(row)) for row in room.extremities}
        self._after: dict[str, State] = {}
        self._rows: dict[str, EventRow] = {}
        self._fresh: dict[int, EventRow] = {}
        self._states: list[State] = []
        self._changes: list[StateChange] = []
        self._relations: list[Relation] = []
        self._redactions: list[Redaction] = []

    # -- what is known -------------------------------------------------------------------------------

    def is_known(self, arrival: Arrival) -> bool:
        """Whether the event has its place in the room's history already."""
        standing = self._references.standings.get(arrival.event.event_id)
        return standing is not None and (standing.in_timeline or standing.is_placed)

    def missing(self, arrival: Arrival) -> frozenset[str]:
        """Name the events that it follows and whose place is not known, and those that it cites."""
        event, standings = arrival.event, self._references.standings
        missing = {other for other in event.auth_event_ids if other not in self._rows}
        missing.difference_update(self._references.rows)
        for other in event.prev_event_ids:
            if other in self._after:
                continue
            standing = standings.get(other)
            if standing is None or not standing.is_placed or standing.room_nid != self._room.room_nid:
                missing.add(other)
        return frozenset(missing)

    # -- checking ------------------------------------------------------------------------------------

    async def check(self, arrival: Arrival) -> AuthError | None:
        """Find the place of an event and do checks 4 to 6.

        Raises AuthError if it is rejected, gives one if it is soft-failed, None if it is accepted. Raises
        HeadMoved.
        """
        event = arrival.event
        at_current = self._ends.keys() == set(event.prev_event_ids)
        arrival.before = before = self._state if at_current else await self._state_before(event)
        self._states.append(before)
        arrival.row = self._row(arrival)
        self._check_cited(event)
        keys = self._keys_for(event)
        current = self._current_at(keys)
        state = current if at_current else await self._rows_at(before, keys)
        if event.is_state and (replaced := state.get(event.key)) is not None:
            arrival.row.replaces_nid = replaced.event_nid
        # What was judged was one moment of the room only if nothing happened to it.
        if self._room.head != self._head:
            raise HeadMoved(self._room.head)
        # 5. "Passes authorisation rules based on the state before the event, otherwise it is rejected."
        check_auth(event, _events(state), self._levels if at_current else None)
        # 6. "Passes authorisation rules based on the current state of the room, otherwise it is soft failed"
        if at_current:
            return None
        try:
            check_auth(event, _events(current), self._levels)
        except AuthError as error:
            return error
        return None

    def _check_cited(self, event: Event) -> None:
        # 4. "Passes authorisation rules based on the event's auth events, otherwise it is rejected."
        standings = self._references.standings
        standing = standings.get(event.event_id)
        if standing is not None and standing.rejected:
            raise AuthError("The event was rejected before")
        cited = self._cited(event)
        rejected = {row.event_id for row in cited if (s := standings.get(row.event_id)) and s.rejected}
        events = [row.event for row in cited]
        check_state_independent(event, events, rejected=rejected, create_event=self._create.event)
        state = {other.key: other for other in events}
        state.setdefault(CREATE_KEY, self._create.event)
        check_auth(event, state)

    def _cited(self, event: Event) -> list[EventRow]:
        """Give the events that an event cites, one for each entry."""
        known = self._references.rows
        return [self._rows.get(other) or known[other] for other in event.auth_event_ids]

    def _keys_for(self, event: Event) -> list[StateKey]:
        keys = auth_event_keys(
            event.version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        )
        own = [event.key] if event.is_state else []
        return list(dict.fromkeys((CREATE_KEY, *keys, *own)))

    def _current_at(self, keys: Sequence[StateKey]) -> dict[StateKey, EventRow]:
        return {key: row for key in keys if (row := self._current(key)) is not None}

    def _current(self, key: StateKey) -> EventRow | None:
        return self._changed[key] if key in self._changed else self._room.state.get(key)

    async def _rows_at(self, state: State, keys: Sequence[StateKey]) -> dict[StateKey, EventRow]:
        return await self._forks.rows_at(
            state, keys, room_nid=self._room.room_nid, current=self._room.state, fresh=self._fresh
        )

    async def _state_before(self, event: Event) -> State:
        """Resolve the states after the events that an event follows."""
        states = [self._state_after(other) for other in dict.fromkeys(event.prev_event_ids)]
        return await self._resolve(states)

    def _state_after(self, event_id: str) -> State:
        if (after := self._after.get(event_id)) is not None:
            return after
        standing = self._references.standings[event_id]
        before = stored_state(standing.snapshot_nid)
        # "The state used in the checks should be calculated as normal, except not updating with the
        # rejected event where it is a state event."
        if standing.state_key is None or standing.rejected:
            return before
        return before.after(standing.event_nid, standing.replaces_nid)

    async def _resolve(self, states: Sequence[State]) -> State:
        if len(states) == 1:
            return states[0]
        return await self._forks.resolve(
            self._room.version, states, current=self._room.state, fresh=self._fresh
        )

    def _row(self, arrival: Arrival) -> EventRow:
        event = arrival.event
        standing = self._references.standings.get(event.event_id)
        if standing is not None:
            arrival.event_nid = standing.event_nid
        elif arrival.event_nid is None:
            arrival.event_nid = self._nids.take()
        room = RoomName(self._room.room_nid, self._room.room_id, self._room.version)
        return new_row(room, event, arrival.event_nid, self._cited(event))

    # -- accepting -----------------------------------------------------------------------------------

    async def accept(self, arrival: Arrival) -> None:
        """Make a checked event part of the room."""
        row, before = arrival.placed
        after = before.after(row.event_nid, row.replaces_nid) if row.state_key is not None else before
        self._fresh[row.event_nid] = self._rows[row.event_id] = row
        self._after[row.event_id] = after
        row.snapshot_nid = (await self._snapshot_of(before))[0]
        follows_all = self._follow(row, after)
        await self._move_state(row, await self._resolve([end.after for end in self._ends.values()]))
        snapshot = await self._snapshot_of(self._state)
        # Only so much does `Room.apply` do by itself; whatever else happened, the room is read anew.
        plain = not row.state_changes or (row.state_key is not None and row.state_changes == (row.key,))
        row.room_snapshot = snapshot if follows_all and plain else None
        row.is_only_end = self._ends.keys() == {row.event_id}
        self._note_relation(row)
        self._note_redaction(row)
        self._redact_if_asked(row)
        self.events.append(row)

    def _follow(self, row: EventRow, after: State) -> bool:
        """Make ``row`` an end of the room's history; say whether ``Room.apply`` finds the same ends."""
        followed = set(row.event.prev_event_ids)
        expected = (self._ends.keys() - followed) | {row.event_id}
        for event_id in followed | self._behind_refused(followed):
            self._ends.pop(event_id, None)
        if row.event_id not in self._references.followed or not self._ends:
            self._ends[row.event_id] = _End(row.event_nid, after)
        return self._ends.keys() == expected

    def _behind_refused(self, followed: Iterable[str]) -> set[str]:
        """Name what an event follows by way of events that are never shown."""
        behind: set[str] = set()
        looking = list(followed)
        standings, rows = self._references.standings, self._references.rows
        for event_id in looking:
            standing = standings.get(event_id)
            if standing is None or not standing.is_refused or event_id not in rows:
                continue
            for other in rows[event_id].event.prev_event_ids:
                if other not in behind:
                    behind.add(other)
                    looking.append(other)
        return behind

    async def _snapshot_of(self, state: State) -> tuple[int, int]:
        self._states.append(state)
        return await self._forks.snapshot_of(state, self._room.room_nid, self._size)

    async def _move_state(self, row: EventRow, state: State) -> None:
        """Make ``state`` the current state, together with the event ``row``."""
        if state is self._state:
            return
        changes: dict[StateKey, EventRow | None]
        if state.base is self._state and state.nids is None:  # no fork: the event's own key and no other
            changes = {row.key: row}
        else:
            changes = await self._forks.differences(
                self._state, state, current=self._room.state, fresh=self._fresh
            )
            if not changes:
                return  # the snapshot that there is will do
        self._state = state
        for key, becomes in changes.items():
            self._change(row, key, becomes)
        row.state_changes = tuple(changes)
        if row.state_key is not None and changes.get(row.key, row) is not row:
            row.state_changes += (row.key,)  # twice: it became another event than this one

    def _change(self, at: EventRow, key: StateKey, new_row: EventRow | None) -> None:
        old = self._current(key)
        self._changes.append(state_change(at, key, new_row, old))
        self._changed[key] = new_row
        if key == POWER_LEVELS_KEY:
            self._levels = PowerLevels.of(new_row.event if new_row else None, self._create.event)

    def _note_relation(self, row: EventRow) -> None:
        if (relation := row.relation) is not None and not any("\0" in text for text in relation):
            target, rel_type = relation
            self._relations.append(
                Relation(row.event_nid, row.room_nid, target, rel_type, row.type, row.sender)
            )

    def _note_redaction(self, row: EventRow) -> None:
        target_id = row.event.redacts if row.type == _REDACTION else None
        if target_id is None or "\0" in target_id or len(target_id) > 255:
            return
        target = self._rows.get(target_id) or self._references.rows.get(target_id)
        effective = target is not None and self._may_redact(row, target)
        if effective:
            row.redacts = target_id
        self._redactions.append(Redaction(row.event_nid, row.room_nid, target_id, effective))

    def _may_redact(self, row: EventRow, target: EventRow) -> bool:
        return target.room_nid == row.room_nid and may_redact(self._levels, row.sender, target)

    def _redact_if_asked(self, row: EventRow) -> None:
        """Redact an event whose redaction came before it.

        "the redaction [is applied] … if the event is received later". What is left is all that is stored.
        """
        asked = [*self._references.redactions.get(row.event_id, ())]
        asked += [other for other in self.events if other.type == _REDACTION]
        for other in asked:
            if other.event.redacts == row.event_id and self._may_redact(other, row):
                pdu = redact(row.event.pdu, row.version)
                row.replace_event(Event(pdu, row.event_id, row.version))
                row.set_redacted(other)
                self._redactions.append(Redaction(other.event_nid, row.room_nid, row.event_id, True))
                return

    # -- storing -------------------------------------------------------------------------------------

    async def write(self) -> RoomWrite:
        """Give all that is to be committed for the events that were accepted."""
        return RoomWrite(
            room_nid=self._room.room_nid,
            room_id=self._room.room_id,
            version_id=self._room.version.identifier,
            expected_head=self._head,
            snapshot_nid=(await self._snapshot_of(self._state))[0],
            extremities=[end.event_nid for end in self._ends.values()],
            events=self.events,
            txn_scopes={},
            snapshots=self._unstored(),
            changes=self._changes,
            relations=self._relations,
            redactions=self._redactions,
        )

    def _unstored(self) -> list[Snapshot]:
        found = {s.snapshot_nid: s for state in self._states for s in state.unstored()}
        return list(found.values())

    def set_stored(self) -> None:
        """Note that all that ``write`` gave was committed."""
        for state in self._states:
            state.set_stored()
        self._states.clear()

    async def store_refused(self, arrival: Arrival, *, soft_failed: bool) -> None:
        """Keep an event that is never shown, with the state before it. Raises AlreadyStored."""
        row, before = arrival.placed
        row.snapshot_nid = (await self._snapshot_of(before))[0]
        await self._graph.store_refused(
            row, rejected=not soft_failed, soft_failed=soft_failed, snapshots=self._unstored()
        )
        self.set_stored()


def _events(rows: Mapping[StateKey, EventRow]) -> dict[StateKey, Event]:
    return {key: row.event for key, row in rows.items()}
