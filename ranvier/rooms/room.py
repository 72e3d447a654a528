"""One room in memory: its head, the ends of its history and its current state."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pyroaring import BitMap64

from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, POWER_LEVELS_KEY
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.room_versions import RoomVersion
from ranvier.storage.rooms import LoadedRoom
from ranvier.wire.log_rows import EventRow

MEMBER = "m.room.member"
FIRST_MEMBERS = 6


# With one write elsewhere in this time it costs about the same to pass a write on (0.3 ms) and to be
# overtaken now and then (a commit of 3 ms, one time in ten).
_LATELY_MS: Final = 50


def is_recent(ts: int, now_ms: int) -> bool:
    """Tell whether an event is so new that whoever wrote it may be writing on."""
    return now_ms - ts < _LATELY_MS


class Room:
    """Hold what is true of a room at log position ``head``; ``apply`` moves it on.

    ``state`` maps ``(type, state_key)`` to the event in force, ``joined`` and ``invited`` are user ids,
    ``extremities`` the events that nothing follows yet. Readers must not change any of it.
    """

    __slots__ = (
        "_elsewhere",
        "_elsewhere_ts",
        "_first_members",
        "_other_state",
        "_power_levels",
        "_written",
        "extremities",
        "head",
        "invited",
        "joined",
        "room_id",
        "room_nid",
        "snapshot_nid",
        "snapshot_steps",
        "stale",
        "state",
        "version",
    )

    def __init__(self, *, room_nid: int, room_id: str, version: RoomVersion) -> None:
        self.room_nid = room_nid
        self.room_id = room_id
        self.version = version
        self.head = 0
        self.snapshot_nid = 0
        self.snapshot_steps = 0
        self.extremities: list[EventRow] = []
        self.state: dict[StateKey, EventRow] = {}
        self.joined: set[str] = set()
        self.invited: set[str] = set()
        self.stale = False
        self._written = 0
        self._elsewhere = self._elsewhere_ts = 0
        self._power_levels: PowerLevels | None = None
        self._first_members: list[EventRow] | None = None
        self._other_state: dict[StateKey, EventRow] = {}

    @classmethod
    def from_storage(cls, loaded: LoadedRoom, version: RoomVersion) -> Room:
        """Make a room of what was read from the database."""
        room = cls.without_state(loaded, version)
        room.add_state(loaded.state)
        return room

    @classmethod
    def without_state(cls, loaded: LoadedRoom, version: RoomVersion) -> Room:
        """Make a room of what was read from the database, whose state is still to be added."""
        room = cls(room_nid=loaded.stored.room_nid, room_id=loaded.stored.room_id, version=version)
        room.head = loaded.stored.head
        room.snapshot_nid = loaded.stored.snapshot_nid
        room.snapshot_steps = loaded.snapshot_steps
        room.extremities = loaded.extremities
        return room

    def add_state(self, rows: Iterable[EventRow]) -> None:
        """Add a part of the current state, in the making of a room."""
        for row in rows:
            self._set_state(row)

    def apply(self, row: EventRow) -> None:
        """Move on by the next event of the room's log.

        ``stale`` becomes true where the row does not say enough (a fork was resolved, or the row was read
        back from the database): the room must then be loaded anew.
        """
        if row.pos <= self.head:
            return
        own_key = (
            row.state_key is not None and len(row.state_changes) == 1 and row.state_changes[0] == row.key
        )
        if (row.state_changes and not own_key) or row.room_snapshot is None:
            self.stale = True  # and at the head of before: whoever still writes on top of it is refused
            return
        self.head = row.pos
        if row.is_only_end:
            self.extremities = [row]
        else:
            followed = set(row.event.prev_event_ids)
            self.extremities = [e for e in self.extremities if e.event_id not in followed]
            self.extremities.append(row)
        self.snapshot_nid, self.snapshot_steps = row.room_snapshot
        if own_key:
            self._set_state(row)

    @property
    def latest_ts(self) -> int:
        """Give when the newest event was made, by its own account."""
        return self.extremities[-1].origin_server_ts if self.extremities else 0

    def note_written(self, pos: int, after: int, after_ts: int) -> None:
        """Know that this process wrote up to ``pos``, on top of an event of ``after_ts`` at ``after``."""
        if after != self._written:
            self._elsewhere, self._elsewhere_ts = after, after_ts
        self._written = pos

    @property
    def written_elsewhere(self) -> int:
        """Give the position of the newest event that this process did not note as its own."""
        return self._elsewhere if self.head == self._written else self.head

    def is_written_elsewhere(self, now_ms: int) -> bool:
        """Tell whether another process wrote to the room just now, so that we might be overtaken."""
        if self.head != self._written and is_recent(self.latest_ts, now_ms):
            return True
        return is_recent(self._elsewhere_ts, now_ms)

    def _set_state(self, row: EventRow) -> None:
        key = row.key
        self.state[key] = row
        if row.type == MEMBER:
            self._set_member(key[1], row.membership)
            return
        self._other_state[key] = row
        if key in (POWER_LEVELS_KEY, CREATE_KEY):
            self._power_levels = None

    def _set_member(self, user_id: str, membership: str | None) -> None:
        first = self._first_members
        if first is not None and (len(first) < FIRST_MEMBERS or user_id in {row.state_key for row in first}):
            self._first_members = None
        self.joined.discard(user_id)
        self.invited.discard(user_id)
        if membership == "join":
            self.joined.add(user_id)
        elif membership == "invite":
            self.invited.add(user_id)

    # -- reading -----------------------------------------------------------------------------------

    @property
    def create(self) -> EventRow:
        """The create event."""
        return self.state[CREATE_KEY]

    @property
    def power_levels(self) -> PowerLevels:
        """The power levels in force (made once for each power-levels event)."""
        if self._power_levels is None:
            levels = self.state.get(POWER_LEVELS_KEY)
            self._power_levels = PowerLevels.of(levels.event if levels else None, self.create.event)
        return self._power_levels

    def membership_of(self, user_id: str) -> str | None:
        """Give join, invite, leave, ban or knock; None for a user who never had to do with the room."""
        row = self.state.get((MEMBER, user_id))
        return None if row is None else row.membership

    def content(self, type: str, state_key: str = "") -> Mapping[str, object]:
        """Give the content of a piece of state; empty if there is none."""
        row = self.state.get((type, state_key))
        return {} if row is None else row.content

    @property
    def history_visibility(self) -> str:
        """``m.room.history_visibility``, "shared" where it is missing or not one of the four."""
        value = self.content("m.room.history_visibility").get("history_visibility")
        known = ("invited", "joined", "shared", "world_readable")
        return value if isinstance(value, str) and value in known else "shared"

    @property
    def join_rule(self) -> str:
        """``m.room.join_rules``, "invite" where it is missing."""
        value = self.content("m.room.join_rules").get("join_rule")
        return value if isinstance(value, str) else "invite"

    def state_with(self, members: Iterable[str]) -> dict[StateKey, EventRow]:
        """Give the state but for members, and the member events of some users."""
        state = dict(self._other_state)
        for user_id in members:
            if (row := self.state.get((MEMBER, user_id))) is not None:
                state[row.key] = row
        return state

    @property
    def first_members(self) -> list[EventRow]:
        """The member events of the ``FIRST_MEMBERS`` who have been joined or invited the longest.

        Kept: who comes is the last, so that it changes only when one of the first ones does.
        """
        if self._first_members is None:
            present = (self.state[MEMBER, user_id] for user_id in self.joined | self.invited)
            self._first_members = heapq.nsmallest(FIRST_MEMBERS, present, key=lambda row: row.pos)
        return self._first_members

    @property
    def members(self) -> Iterator[EventRow]:
        """Every member event in force."""
        return (row for (type_, _), row in self.state.items() if type_ == MEMBER)


class StateView(Mapping[StateKey, Event]):
    """Show state as the events that the rules want, without copying it: ``changed`` before ``base``."""

    __slots__ = ("_base", "_changed")

    def __init__(self, changed: Mapping[StateKey, EventRow], base: Mapping[StateKey, EventRow]) -> None:
        self._changed = changed
        self._base = base

    def row(self, key: StateKey) -> EventRow | None:
        """Give the row of a key."""
        return self._changed.get(key) or self._base.get(key)

    def event_nids(self) -> BitMap64:
        """Give all of the state as a set of integers, quickly: of a large room it is tens of thousands."""
        nids = BitMap64([row.event_nid for row in self._base.values()])
        for key, row in self._changed.items():
            if (replaced := self._base.get(key)) is not None:
                nids.discard(replaced.event_nid)
            nids.add(row.event_nid)
        return nids

    def __getitem__(self, key: StateKey) -> Event:
        row = self.row(key)
        if row is None:
            raise KeyError(key)
        return row.event

    def get(self, key: StateKey, default: Event | None = None) -> Event | None:  # type: ignore[override]
        """Give the event of a key (the hot path: no exception where there is none)."""
        row = self.row(key)
        return default if row is None else row.event

    def __contains__(self, key: object) -> bool:
        return key in self._changed or key in self._base

    def __iter__(self) -> Iterator[StateKey]:
        yield from self._changed
        yield from (key for key in self._base if key not in self._changed)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def auth_chain_of(auth_rows: Iterable[EventRow]) -> BitMap64:
    """Give the auth chain of an event by those that it cites: they and all that they rest on."""
    chain = BitMap64()
    for row in auth_rows:
        chain.add(row.event_nid)
        if row.auth_chain is not None:
            chain |= BitMap64.deserialize(row.auth_chain)
    return chain
