"""A draft: new events on top of a room, built, authorised and signed, and not yet committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from ranvier.rooms.room import Room, StateView, auth_chain_of
from ranvier.spec import canonical_json
from ranvier.spec.errors import invalid_param
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, POWER_LEVELS_KEY, auth_event_keys, check_auth
from ranvier.spec.event_format import build_pdu, check_event_size
from ranvier.spec.event_hashes import reference_hash
from ranvier.spec.ids import domain_of, new_event_id
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.signatures import SigningKey, finish_event
from ranvier.storage.log import Redaction, Relation, RoomWrite, Snapshot, StateChange
from ranvier.storage.nids import Nids
from ranvier.wire.log_rows import EventRow

MAX_PREV_EVENTS: Final = 20  # "Must contain less than or equal to 20 events"
STATE_SCOPE: Final = "state"
_MIN_STEPS: Final = 32
_MAX_STEPS: Final = 512


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this server is: its name and the key that it signs with."""

    server_name: str
    signing_key: SigningKey


class Txn(NamedTuple):
    """A client's transaction: ``scope`` is the endpoint and what it names; see the table ``transactions``."""

    user_id: str
    device_id: str
    scope: str
    txn_id: str

    @property
    def is_surely_kept(self) -> bool:
        """Whether it is kept whenever all went well: with an event. State that is so already makes none."""
        return not self.scope.startswith(STATE_SCOPE)


def steps_before_full_copy(size: int) -> int:
    """Say after how many changes to a snapshot a full copy is due, for a state of ``size`` events."""
    # So often that reading stays short, and so seldom that copies stay cheap.
    return max(_MIN_STEPS, min(_MAX_STEPS, size // 20))


def may_redact(levels: PowerLevels, sender: str, target: EventRow) -> bool:
    """Tell whether a redaction by ``sender`` takes effect on an event of the same room.

    Source: room version 3, "Handling redactions": the power level of the redaction's sender is at least
    the redact level, or the domains of both senders are the same.
    """
    if target.type == "m.room.create":
        return False
    return levels.user_level(sender) >= levels.redact or domain_of(sender) == domain_of(target.sender)


def state_change(at: EventRow, key: StateKey, new: EventRow | None, old: EventRow | None) -> StateChange:
    """Say that a key of the current state becomes another event (or none) together with the event ``at``."""
    return StateChange(
        room_nid=at.room_nid,
        at_nid=at.event_nid,
        type=key[0],
        state_key=key[1],
        event_nid=new.event_nid if new is not None else None,
        prev_nid=old.event_nid if old is not None else None,
        membership=new.membership if new is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Base:
    """What the first event of a draft follows where a room has more ends than an event may follow.

    ``ends`` are those that it follows and ``left`` the others; ``state`` is the state after ``ends``,
    ``snapshot`` its snapshot and steps, ``pending`` the snapshots that are still to be stored for it.
    """

    ends: list[EventRow]
    left: list[EventRow]
    state: Mapping[StateKey, EventRow]
    snapshot: tuple[int, int]
    pending: list[Snapshot]


class _Mark(NamedTuple):
    events: int
    snapshots: int
    changes: int
    relations: int
    redactions: int
    state: dict[StateKey, EventRow]
    extremities: list[EventRow]
    snapshot: tuple[int, int]
    power_levels: PowerLevels | None


class Draft:
    """Build events on top of ``room`` without changing it; ``write`` gives what is to be committed.

    ``add`` is the only way in for events of ours: it picks what the event follows and cites, checks it by
    the room's rules against the state before it, and signs it. What was added can be taken back to a
    ``mark`` when a later part of the same action is refused.
    """

    def __init__(
        self, room: Room, *, identity: Identity, nids: Nids, now_ms: int, base: Base | None = None
    ) -> None:
        self.room = room
        self.now_ms = now_ms
        self.events: list[EventRow] = []
        self._identity = identity
        self._nids = nids
        self._changed: dict[StateKey, EventRow] = {}
        self._base = base
        self._extremities = list(room.extremities if base is None else base.ends)
        self._snapshot = (room.snapshot_nid, room.snapshot_steps) if base is None else base.snapshot
        self._snapshots: list[Snapshot] = [] if base is None else list(base.pending)
        self._changes: list[StateChange] = []
        self._relations: list[Relation] = []
        self._redactions: list[Redaction] = []
        self._txn_scopes: dict[int, str] = {}
        self._power_levels: PowerLevels | None = None
        self._room_id: str | None = room.room_id or None
        self.state = StateView(self._changed, room.state if base is None else base.state)

    # -- reading -----------------------------------------------------------------------------------

    @property
    def room_id(self) -> str:
        """Id of the room; in room version 12 it is known once the create event was added."""
        assert self._room_id is not None
        return self._room_id

    @property
    def power_levels(self) -> PowerLevels:
        """The power levels at this point of the draft."""
        unchanged = POWER_LEVELS_KEY not in self._changed and CREATE_KEY not in self._changed
        if unchanged and self._base is None:
            return self.room.power_levels
        if self._power_levels is None:
            self._power_levels = PowerLevels.of(self.state.get(POWER_LEVELS_KEY), self.state[CREATE_KEY])
        return self._power_levels

    def membership_of(self, user_id: str) -> str | None:
        """Give the membership of a user at this point of the draft."""
        row = self.state.row(("m.room.member", user_id))
        return None if row is None else row.membership

    # -- building ----------------------------------------------------------------------------------

    def add(
        self,
        *,
        sender: str,
        type: str,
        content: dict[str, Any],
        state_key: str | None = None,
        redacts: EventRow | None = None,
        redacts_id: str | None = None,
        origin_server_ts: int | None = None,
        unsigned: dict[str, Any] | None = None,
    ) -> EventRow:
        """Add an event of ours and give it.

        A state event that says what its own sender said there already is not made again: the one in force is
        given. ``redacts`` is the target of a redaction, where it is known. ``unsigned`` is kept with the
        event and not signed (an invitation's stripped state). Raises AuthError (403) where the room's rules
        refuse it, ``M_TOO_LARGE``, ``M_BAD_JSON``, and ``M_INVALID_PARAM`` for NUL in the type or the key.
        """
        # PostgreSQL's text holds no NUL, and these two are columns.
        if "\0" in type or (state_key is not None and "\0" in state_key):
            raise invalid_param("An event's type and state key hold no NUL")
        version = self.room.version
        canonical_json.check(content, strict=version.strict_canonical_json)
        replaced = self.state.row((type, state_key)) if state_key is not None else None
        if replaced is not None and replaced.sender == sender and replaced.event.content == content:
            return replaced
        # A second create event is like any other: refused by the rules.
        creating = type == "m.room.create" and not self._extremities
        auth_rows = self._auth_rows(type, sender, state_key, content)
        target_id = redacts.event_id if redacts is not None else redacts_id
        pdu = self._build(sender, type, content, state_key, auth_rows, target_id, origin_server_ts)
        if not creating:
            check_auth(Event(pdu, "", version), self.state, self.power_levels)
        event_id = finish_event(pdu, version, self._identity.server_name, self._identity.signing_key)
        if unsigned is not None:
            pdu["unsigned"] = unsigned
        raw = orjson.dumps(pdu)
        check_event_size(raw)
        event = Event(pdu, event_id, version, raw=raw)
        if creating:
            check_auth(event, self.state)
            self._room_id = event.room_id
        row = self._row(event, replaced, auth_rows)
        self._follow(row, replaced)
        self._note_relation(row)
        if target_id is not None:
            self._note_redaction(row, target_id, redacts)
        return row

    def _auth_rows(
        self, type: str, sender: str, state_key: str | None, content: Mapping[str, Any]
    ) -> list[EventRow]:
        keys = auth_event_keys(
            self.room.version, type=type, sender=sender, state_key=state_key, content=content
        )
        return [row for key in keys if (row := self.state.row(key)) is not None]

    def _build(
        self,
        sender: str,
        type: str,
        content: dict[str, Any],
        state_key: str | None,
        auth_rows: list[EventRow],
        redacts: str | None,
        origin_server_ts: int | None,
    ) -> dict[str, Any]:
        version = self.room.version
        # Deep ends first: what they build on is reached through them.
        previous = sorted(self._extremities, key=lambda row: (-row.depth, row.event_id))[:MAX_PREV_EVENTS]
        hashes: dict[str, str] = {}
        event_id = None
        if version.event_id_in_pdu:
            hashes = {r.event_id: reference_hash(r.event.pdu, version) for r in (*previous, *auth_rows)}
            event_id = new_event_id(self._identity.server_name, f"{self._nids.take():x}{self.now_ms:x}")
        return build_pdu(
            version,
            room_id=self._room_id,  # none yet where it is the hash of the create event
            sender=sender,
            type=type,
            content=content,
            state_key=state_key,
            prev_events=[row.event_id for row in previous],
            auth_events=[row.event_id for row in auth_rows],
            depth=previous[0].depth + 1 if previous else 1,
            origin_server_ts=self.now_ms if origin_server_ts is None else origin_server_ts,
            redacts=redacts,
            event_id=event_id,
            reference_hashes=hashes,
        )

    def _row(self, event: Event, replaced: EventRow | None, auth_rows: list[EventRow]) -> EventRow:
        return EventRow(
            event_nid=self._nids.take(),
            room_nid=self.room.room_nid,
            room_id=self.room_id,
            version_id=self.room.version.identifier,
            event_id=event.event_id,
            type=event.type,
            state_key=event.state_key,
            sender=event.sender,
            depth=event.depth,
            origin_server_ts=event.origin_server_ts,
            pdu=event.raw,
            snapshot_nid=self._snapshot[0] or None,
            replaces_nid=replaced.event_nid if replaced is not None else None,
            auth_chain=auth_chain_of(auth_rows).serialize() if event.is_state else None,
            known_event=event,
        )

    def _follow(self, row: EventRow, replaced: EventRow | None) -> None:
        """Make ``row`` the new end of the draft."""
        self.events.append(row)
        followed = set(row.event.prev_event_ids)
        self._extremities = [e for e in self._extremities if e.event_id not in followed]
        self._extremities.append(row)
        if row.state_key is not None:
            self._change_state(row, replaced)
        row.room_snapshot = self._snapshot
        row.is_only_end = len(self._extremities) == 1

    def _change_state(self, row: EventRow, replaced: EventRow | None) -> None:
        key = row.key
        self._changed[key] = row
        row.state_changes = (key,)
        if key in (POWER_LEVELS_KEY, CREATE_KEY):
            self._power_levels = None
        self._changes.append(state_change(row, key, row, replaced))
        self._snapshot = self._new_snapshot(row, replaced)

    def _new_snapshot(self, row: EventRow, replaced: EventRow | None) -> tuple[int, int]:
        nid = self._nids.take()
        parent, steps = self._snapshot
        if not parent or steps + 1 >= steps_before_full_copy(len(self.room.state)):
            state = self.state.event_nids()
            self._snapshots.append(Snapshot(nid, row.room_nid, None, 0, state.serialize(), None, None))
            return nid, 0
        removed = [replaced.event_nid] if replaced is not None else []
        self._snapshots.append(Snapshot(nid, row.room_nid, parent, steps + 1, None, [row.event_nid], removed))
        return nid, steps + 1

    def _note_relation(self, row: EventRow) -> None:
        if (relation := row.relation) is not None:
            target, rel_type = relation
            self._relations.append(
                Relation(row.event_nid, row.room_nid, target, rel_type, row.type, row.sender)
            )

    def _note_redaction(self, row: EventRow, target_id: str, target: EventRow | None) -> None:
        effective = target is not None and self.may_redact(row.sender, target)
        if effective:
            row.redacts = target_id
        self._redactions.append(Redaction(row.event_nid, row.room_nid, target_id, effective))

    def may_redact(self, sender: str, target: EventRow) -> bool:
        """Tell whether a redaction by ``sender`` takes effect on ``target``; see ``may_redact``."""
        return target.room_nid == self.room.room_nid and may_redact(self.power_levels, sender, target)

    # -- taking back and committing ----------------------------------------------------------------

    def mark(self) -> _Mark:
        """Remember this point of the draft."""
        return _Mark(
            len(self.events),
            len(self._snapshots),
            len(self._changes),
            len(self._relations),
            len(self._redactions),
            dict(self._changed),
            self._extremities,
            self._snapshot,
            self._power_levels,
        )

    def note_txn(self, txn: Txn, mark: _Mark) -> None:
        """Say in which transaction all was added since ``mark``; the last event of it keeps that."""
        if len(self.events) > mark.events:
            row = self.events[-1]
            row.txn_device, row.txn_id = txn.device_id, txn.txn_id
            self._txn_scopes[row.event_nid] = txn.scope

    def take_back(self, mark: _Mark) -> None:
        """Forget everything that was added since ``mark``."""
        del self.events[mark.events :]
        del self._snapshots[mark.snapshots :]
        del self._changes[mark.changes :]
        del self._relations[mark.relations :]
        del self._redactions[mark.redactions :]
        self._changed.clear()
        self._changed.update(mark.state)
        self._extremities = mark.extremities
        self._snapshot = mark.snapshot
        self._power_levels = mark.power_levels

    @property
    def snapshot(self) -> tuple[int, int]:
        """The snapshot of the state at this point of the draft, and its steps from a full copy."""
        return self._snapshot

    def settle(
        self,
        changes: Mapping[StateKey, EventRow | None],
        *,
        snapshot: tuple[int, int],
        pending: list[Snapshot],
    ) -> None:
        """Say what the room's state becomes where the draft does not follow all ends of its history.

        ``changes`` are those of the room's current state, all with the last event of the draft.
        """
        last = self.events[-1]
        for row in self.events:
            row.state_changes = ()
            row.room_snapshot = None  # so that rooms are read anew
            row.is_only_end = False
        last.state_changes = tuple(changes)
        self._changes = [
            state_change(last, key, row, self.room.state.get(key)) for key, row in changes.items()
        ]
        self._snapshot = snapshot
        known = {made.snapshot_nid for made in self._snapshots}
        self._snapshots += [made for made in pending if made.snapshot_nid not in known]

    def write(self) -> RoomWrite:
        """Give all that is to be committed."""
        left = self._base.left if self._base is not None else []
        return RoomWrite(
            room_nid=self.room.room_nid,
            room_id=self.room_id,
            version_id=self.room.version.identifier,
            expected_head=self.room.head,
            snapshot_nid=self._snapshot[0],
            extremities=[row.event_nid for row in (*self._extremities, *left)],
            events=self.events,
            txn_scopes=self._txn_scopes,
            snapshots=self._snapshots,
            changes=self._changes,
            relations=self._relations,
            redactions=self._redactions,
        )
