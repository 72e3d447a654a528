"""Events as clients get them, composed of bytes: what is the same for all readers is made once.

``Renderer.prepare`` looks up, for a whole page, what single events lack (what a state event replaced, what
the reader was in the room, edits and threads); ``Rendering.event`` then only joins bytes.

Source: client-server API, "Room event format".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.rooms.erased_users import ErasedUsers
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.relations import Bundle, Relations
from ranvier.rooms.room import MEMBER
from ranvier.rooms.visibility import Sight, Visibility
from ranvier.spec.filters import NO_FILTER, Filter
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow, Row

MAX_PREVIOUS: Final = 2000
"""How many replaced state events are looked up for one page; beyond it prev_content is left out."""
_AT_ONCE: Final = 500
_LOOKED_AT_ONCE: Final = 5000
_MEMBERSHIPS: Final[Mapping[str | None, bytes]] = {
    name: b',"membership":"%b"' % name.encode() for name in ("join", "invite", "knock", "leave", "ban")
}


class Previous(NamedTuple):
    """What a state event replaced, as JSON; ``redacted`` is the content for who came after an erasure."""

    event_id: bytes
    content: bytes
    pos: int
    room_id: str
    sender: str
    redacted: bytes


class PreviousStates:
    """Keep what state events replaced, by event_nid, and forget what is redacted.

    State events in the newest history are asked for by every member at once: the first one reads.
    """

    def __init__(self, *, events: EventStore, tail: Tail, max_kept: int = 20_000) -> None:
        self._events = events
        self._max_kept = max_kept
        self._kept: OrderedDict[int, Previous] = OrderedDict()
        self._nids: dict[str, int] = {}
        self._redactions = 0
        self._lock = asyncio.Lock()
        tail.listen(self._apply, changes=True)

    async def of(self, rows: Iterable[EventRow]) -> Mapping[int, Previous]:
        """Give what the state events of a page replaced, by the replaced event's event_nid."""
        nids = {row.replaces_nid for row in rows if row.replaces_nid is not None}
        kept = self._kept
        if not nids:
            return {}
        if all(nid in kept for nid in nids):
            return {nid: kept[nid] for nid in nids}
        async with self._lock:
            found = {nid: kept[nid] for nid in nids if nid in kept}
            redactions = self._redactions
            for nid, row in (await self._events.by_nids(_some(nids, found))).items():
                found[nid] = _previous(row)
                if self._redactions == redactions:  # else it may have been redacted while it was read
                    self._keep(nid, row.event_id, found[nid])
            return found

    def _keep(self, nid: int, event_id: str, previous: Previous) -> None:
        self._kept[nid] = previous
        self._nids[event_id] = nid
        if len(self._kept) > self._max_kept:
            _, oldest = self._kept.popitem(last=False)
            self._nids.pop(orjson.loads(oldest.event_id), None)

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, EventRow) and row.redacts is not None:
                self._redactions += 1
                nid = self._nids.pop(row.redacts, None)
                if nid is not None:
                    self._kept.pop(nid, None)


def _previous(row: EventRow) -> Previous:
    content = orjson.dumps(row.content)
    redacted = orjson.dumps(row.redacted_pdu["content"]) if row.type == MEMBER else content
    return Previous(
        event_id=orjson.dumps(row.event_id),
        content=content,
        pos=row.pos,
        room_id=row.room_id,
        sender=row.sender,
        redacted=redacted,
    )


def _some(nids: set[int], found: Collection[int]) -> list[int]:
    return [nid for nid in nids if nid not in found][:MAX_PREVIOUS]


class Rendering:
    """Write the events of one page for one reader."""

    __slots__ = (
        "_bundles",
        "_device_id",
        "_erased",
        "_filter",
        "_memberships",
        "_now_ms",
        "_plain",
        "_previous",
        "_rooms",
        "_sights",
        "_turns",
        "_user_id",
        "_with_room_id",
    )

    def __init__(
        self,
        *,
        user_id: str | None,
        device_id: str | None,
        now_ms: int,
        sights: Mapping[str, Sight],
        memberships: Mapping[str, Membership],
        previous: Mapping[int, Previous],
        bundles: Mapping[str, Bundle],
        erased: Mapping[str, int],
        filter: Filter,
        with_room_id: bool,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._erased = erased
        self._user_id = user_id
        self._device_id = device_id
        self._now_ms = now_ms
        self._sights = sights
        self._memberships = memberships
        self._previous = previous
        self._bundles = bundles
        self._filter = filter
        self._with_room_id = with_room_id
        self._plain = not filter.selects_fields and filter.event_format == "client"
        self._rooms: dict[str, bytes] = {}

    def event(self, row: EventRow) -> bytes:
        """Give the JSON object of an event."""
        if not self._plain:
            return self._selected(row)
        client = row.redacted_client if self._erased and self.hides(row) else row.client
        return b'{%b%b,"unsigned":{%b}}' % (client, self._room(row.room_id), self._unsigned(row))

    def content(self, row: EventRow) -> bytes:
        """Give the JSON object of an event's content alone."""
        return orjson.dumps(row.redacted_pdu["content"] if self.hides(row) else row.content)

    def events(self, rows: Iterable[EventRow]) -> bytes:
        """Give a JSON array of events."""
        return b"[%b]" % b",".join([self.event(row) for row in rows])

    async def event_list(self, rows: Sequence[EventRow]) -> list[bytes]:
        """Give events with commas between, in pieces that are to be joined: of a large room it is megabytes.

        Many are made in slices, so that others get their turn.
        """
        pieces: list[bytes] = []
        async for some in self._turns.slices(rows, _AT_ONCE):
            if pieces:
                pieces.append(b",")
            pieces.append(b",".join([self.event(row) for row in some]))
        return pieces

    def _room(self, room_id: str) -> bytes:
        if not self._with_room_id:
            return b""
        room = self._rooms.get(room_id)
        if room is None:
            room = self._rooms[room_id] = b',"room_id":' + orjson.dumps(room_id)
        return room

    def _unsigned(self, row: EventRow) -> bytes:
        unsigned = b'"age":%d' % (self._now_ms - row.origin_server_ts)
        unsigned += _MEMBERSHIPS.get(self._membership(row), b"")
        if row.txn_id is not None and row.sender == self._user_id and row.txn_device == self._device_id:
            unsigned += b',"transaction_id":' + orjson.dumps(row.txn_id)
        if row.replaces_nid is not None and (previous := self._previous.get(row.replaces_nid)) is not None:
            unsigned += b',"replaces_state":' + previous.event_id
            if self._may_see_previous(row, previous):
                hidden = self._hides_from_newcomer(
                    row.room_id, previous.sender, row.type, row.state_key, previous.pos
                )
                unsigned += b',"prev_content":' + (previous.redacted if hidden else previous.content)
        if row.redacted_because is not None:
            unsigned += b',"redacted_because":' + self._bare(row.redacted_because)
        bundle = self._bundles.get(row.event_id)
        if bundle is not None and (relations := self._relations(row, bundle)):
            unsigned += b',"m.relations":{%b}' % relations
        return unsigned

    def hides(self, row: EventRow) -> bool:
        """Tell whether the reader gets a redacted copy, because the sender was erased before they joined."""
        if not self._erased:
            return False
        return self._hides_from_newcomer(row.room_id, row.sender, row.type, row.state_key, row.pos)

    def _hides_from_newcomer(
        self, room_id: str, sender: str, type: str, state_key: str | None, pos: int
    ) -> bool:
        """Decide by who sent the event at ``pos`` of a room.

        "Erasure means that any users … which join the room after the erasure request are served redacted
        copies of the events sent by this account. Users which had visibility on those events prior to the
        erasure are still able to see unredacted copies." Source: ``POST /account/deactivate``, ``erase``.
        """
        erased_pos = self._erased.get(sender)
        if type == MEMBER and erased_pos is None and state_key is not None:
            # An invitation by somebody else has the name of who is invited.
            erased_pos = self._erased.get(state_key)
        if erased_pos is None:
            return False
        # NOTSPEC: state other than memberships is how the room is set up for everybody in it. Redacted, it
        # would tell newcomers that an encrypted room is not, and they would write in the clear.
        if state_key is not None and type != MEMBER:
            return False
        sight = self._sights.get(room_id)
        return sight is None or not sight.saw(pos, erased_pos, is_state=state_key is not None)

    def _membership(self, row: EventRow) -> str | None:
        """Give what the reader was at the event, the event included, where that is known."""
        sight = self._sights.get(row.room_id)
        if sight is not None:
            return sight.membership_at(row.pos)
        membership = self._memberships.get(row.room_id)
        if membership is not None and row.pos >= membership.pos:
            return membership.membership
        return None

    def _may_see_previous(self, row: EventRow, previous: Previous) -> bool:
        """Tell whether the reader may see what a state event replaced.

        Who was joined saw it as the room's state, and everybody knows their own member events.
        """
        if self._user_id is None or (row.type == MEMBER and row.state_key == self._user_id):
            return True
        sight = self._sights.get(row.room_id)
        if sight is not None:
            return sight.sees(previous.pos) or sight.membership_before(row.pos) == "join"
        membership = self._memberships.get(row.room_id)
        return membership is not None and membership.membership == "join" and row.pos > membership.pos

    def _bare(self, row: EventRow) -> bytes:
        """Give an event inside of another's ``unsigned``."""
        age_ms = self._now_ms - row.origin_server_ts
        client = row.redacted_client if self.hides(row) else row.client
        return b'{%b%b,"unsigned":{"age":%d}}' % (client, self._room(row.room_id), age_ms)

    def _relations(self, row: EventRow, bundle: Bundle) -> bytes:
        parts = []
        # "If the original event is redacted, any m.replace relationship should not be bundled with it"
        if bundle.edit is not None and not self.hides(row):
            parts.append(b'"m.replace":' + self._bare(bundle.edit))
        if bundle.thread is not None:
            thread = bundle.thread
            latest = self.event(thread.latest)
            parts.append(
                b'"m.thread":{"latest_event":%b,"count":%d,"current_user_participated":%b}'
                % (latest, thread.count, b"true" if thread.participated else b"false")
            )
        if bundle.references:
            chunk = [{"event_id": event_id} for event_id in bundle.references]
            parts.append(b'"m.reference":' + orjson.dumps({"chunk": chunk}))
        return b",".join(parts)

    def _selected(self, row: EventRow) -> bytes:
        """Write an event in federation format, or cut down to some fields (seldom asked for, so parsed)."""
        shown: dict[str, Any]
        if self._filter.event_format == "federation":
            pdu = row.redacted_pdu if self.hides(row) else row.visible_pdu
            shown = {**pdu, "room_id": row.room_id, "event_id": row.event_id}
        else:
            shown = orjson.loads(b"{%b}" % (row.redacted_client if self.hides(row) else row.client))
            if self._with_room_id:
                shown["room_id"] = row.room_id
        shown["unsigned"] = orjson.loads(b"{%b}" % self._unsigned(row))
        return orjson.dumps(self._filter.project(shown) if self._filter.selects_fields else shown)


def _is_of_any(row: EventRow, users: Collection[str]) -> bool:
    """Tell whether one of some users sent an event, or what redacted it, or is who it is about."""
    because = row.redacted_because
    return row.sender in users or row.state_key in users or (because is not None and because.sender in users)


def render_for_joined(row: EventRow, now_ms: int, *, own: bool) -> bytes:
    """Write a new message as everybody gets it in ``/sync`` who is in the room.

    ``own`` is for the device that sent it.
    """
    txn = b""
    if own and row.txn_id is not None:
        txn = b',"transaction_id":' + orjson.dumps(row.txn_id)
    age_ms = now_ms - row.origin_server_ts
    return b'{%b,"unsigned":{"age":%d,"membership":"join"%b}}' % (row.client, age_ms, txn)


class Renderer:
    """Look up for whole pages what their events need beyond themselves."""

    def __init__(
        self,
        *,
        previous_states: PreviousStates,
        visibility: Visibility,
        memberships: Memberships,
        relations: Relations,
        erased: ErasedUsers,
        clock: Clock,
    ) -> None:
        self._erased = erased
        self._previous_states = previous_states
        self._visibility = visibility
        self._memberships = memberships
        self._relations = relations
        self._clock = clock
        self._turns = Turns(1)

    async def prepare(
        self,
        rows: Sequence[EventRow],
        *,
        user_id: str,
        device_id: str | None = None,
        from_tail: bool = False,
        bundled: Sequence[EventRow] = (),
        ignored: Collection[str] = (),
        filter: Filter = NO_FILTER,
        with_room_id: bool = True,
    ) -> Rendering:
        """Look up what a page of events (of any number of rooms) needs to be written for one reader.

        ``bundled`` are those of the events that get ``m.relations`` (where the specification names the
        endpoint; in ``/sync`` for limited timelines), without children by ``ignored`` users. With
        ``from_tail`` memberships and relations are not asked of the database; what a state event replaced
        is read once for all readers. ``with_room_id`` as the endpoint has it (not in ``/sync``).
        """
        rooms: dict[str, int] = {}
        of_erased: set[str] = set()
        erased = await self._erased.all()
        async for some in self._turns.slices(rows, _LOOKED_AT_ONCE):
            rooms.update({row.room_id: row.room_nid for row in some})
            if erased:
                of_erased.update(row.room_id for row in some if _is_of_any(row, erased))
        previous = await self._previous_states.of(rows)
        of_erased.update(one.room_id for one in previous.values() if one.sender in erased)
        sights = await self._sights(rooms, user_id, from_tail)
        if unknown := [room_id for room_id in of_erased if room_id in rooms and room_id not in sights]:
            sights |= await self._visibility.sights({id_: rooms[id_] for id_ in unknown}, user_id)
        missing = any(room_id not in sights for room_id in rooms)
        memberships = await self._memberships.of(user_id) if missing else {}
        bundles: dict[str, Bundle] = {}
        if bundled:
            bundles = await self._bundles(bundled, user_id, sights, ignored, from_tail)
        shown = [b.thread.latest for b in bundles.values() if b.thread is not None]
        if shown:
            previous = {**previous, **await self._previous_states.of(shown)}
        return Rendering(
            user_id=user_id,
            device_id=device_id,
            now_ms=self._clock.now_ms(),
            sights=sights,
            memberships=memberships,
            previous=previous,
            bundles=bundles,
            erased=erased,
            filter=filter,
            with_room_id=with_room_id,
            turns=self._turns,
        )

    async def _sights(self, rooms: Mapping[str, int], user_id: str, from_tail: bool) -> dict[str, Sight]:
        if not from_tail:
            return await self._visibility.sights(rooms, user_id)
        known = ((room_id, self._visibility.known(room_id, user_id)) for room_id in rooms)
        return {room_id: sight for room_id, sight in known if sight is not None}

    async def _bundles(
        self,
        rows: Sequence[EventRow],
        user_id: str,
        sights: Mapping[str, Sight],
        ignored: Collection[str],
        from_tail: bool,
    ) -> dict[str, Bundle]:
        async def look_up(targets: Sequence[EventRow]) -> dict[str, Bundle]:
            return await self._relations.bundles(
                targets, user_id=user_id, sights=sights, ignored=ignored, from_tail=from_tail
            )

        bundles = await look_up(rows)
        # "child events of the latest_event should themselves be aggregated": their edits
        latest = [b.thread.latest for b in bundles.values() if b.thread is not None]
        return bundles | await look_up(latest) if latest else bundles
