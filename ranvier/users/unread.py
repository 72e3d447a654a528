"""Unread notifications: counted for a user when that user asks, never when something is sent.

For a user and a room the counts up to some position are in memory; asking moves them on by the events
since, which users share (``RoomNotes``). After every hundred events or so what was counted is written to the
database: a restart, or another worker, goes on from there, and from the receipts where nothing was written.

Source: client-server API, "Receiving notifications", "Marking notifications as read", "Threaded read
receipts".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import orjson

from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER, Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.push_rules import CompiledRules
from ranvier.storage.events import TimelineSpan
from ranvier.storage.unread import MemberChange, UnreadStore
from ranvier.users.account_data import IgnoredUsers, is_ignored_list
from ranvier.users.notes import MAX_EVENTS, Note, RoomNotes, outcome_of
from ranvier.users.push_rules import PushRules, is_push_rules
from ranvier.users.unread_gaps import UnreadGaps
from ranvier.users.unread_keeping import TallyKeeping
from ranvier.users.unread_tally import Counts, Notification, Shared, Size, Tally
from ranvier.wire.log_rows import EventRow, LogRow, Row

RECEIPT: Final = "receipt"
READ_TYPES: Final = frozenset({"m.read", "m.read.private"})
_MUCH: Final = 50
"""Events of a room that take a turn of the event loop to count."""
_WRITTEN_AS: Final = 2
"""To be raised with any change of ``Tally.written``: who reads another one counts anew."""
_KEPT_EVERY: Final = 200
"""Events of a room after which what was counted is written to the database."""


class _Reader(NamedTuple):
    """Who counts, and by which rules."""

    user_id: str
    rules: CompiledRules
    ignored: frozenset[str]
    rules_pos: int

    @property
    def rules_key(self) -> str:
        """Name what counts and what does not, and how it is written to the database."""
        if not self.ignored:
            return f"{_WRITTEN_AS}:{self.rules_pos}"
        ignored = sha256(orjson.dumps(sorted(self.ignored))).hexdigest()[:16]
        return f"{_WRITTEN_AS}:{self.rules_pos} {ignored}"


class Unread:
    """Give users' unread counts.

    Bounded by ``max_weight`` (about 120 bytes each): users who asked longest ago go first.
    """

    def __init__(
        self,
        *,
        store: UnreadStore,
        notes: RoomNotes,
        gaps: UnreadGaps,
        rooms: Rooms,
        memberships: Memberships,
        push_rules: PushRules,
        ignored: IgnoredUsers,
        tail: Tail,
        max_weight: int = 200_000,
    ) -> None:
        self._store = store
        self.keeping = TallyKeeping(store=store)
        self._notes = notes
        self._gaps = gaps
        self._rooms = rooms
        self._memberships = memberships
        self._push_rules = push_rules
        self._ignored = ignored
        self._tail = tail
        self._max_weight = max_weight
        self._size = Size()
        self._users: OrderedDict[str, dict[str, Tally]] = OrderedDict()
        self._readers: dict[str, _Reader] = {}
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._turns = Turns(1)
        # All who wait in a room ask for the same, one after the other.
        self._latest: tuple[str, int, int] = ("", 0, 0)
        self._shared: dict[CompiledRules, Shared | None] = {}
        tail.listen(self._apply, changes=True)

    async def counts(self, user_id: str, room_ids: Iterable[str]) -> dict[str, Counts]:
        """Give the counts of rooms that the user is joined to, as of now; other rooms are left out."""
        rules, ignored = await self._push_rules.of(user_id), await self._ignored.of(user_id)
        tallies = self._tallies(user_id)
        # Rules and ignored users may have changed while they were read; who is forgotten then has neither.
        if rules is self._push_rules.held(user_id) and ignored is self._ignored.held(user_id):
            self._readers[user_id] = _Reader(user_id, rules.compiled, ignored, rules.pos)
        reader = _Reader(user_id, rules.compiled, ignored, rules.pos)
        found: dict[str, Counts] = {}
        waiting: list[str] = []
        for room_id in room_ids:
            tally = tallies.get(room_id)
            if tally is not None and self._advance(reader, room_id, tally):
                found[room_id] = tally.counts()
            else:
                waiting.append(room_id)
        if waiting:
            lock = self._loading.get(user_id)
            if lock is None:
                lock = self._loading[user_id] = asyncio.Lock()
            # Events are counted in their order, and only once.
            async with lock:
                found.update(await self._load(reader, tallies, waiting))
        return found

    def held(self, user_id: str, room_id: str) -> Counts | None:
        """Give the counts of a room that the user is joined to if all that they hang on is in memory."""
        reader, tallies = self._readers.get(user_id), self._users.get(user_id)
        if reader is None or tallies is None:
            return None
        self._users.move_to_end(user_id)
        tally = tallies.get(room_id)
        return tally.counts() if tally is not None and self._advance(reader, room_id, tally) else None

    def _tallies(self, user_id: str) -> dict[str, Tally]:
        tallies = self._users.setdefault(user_id, {})
        self._users.move_to_end(user_id)
        while self._size.weight > self._max_weight and len(self._users) > 1:
            self._forget(next(iter(self._users)))
        return tallies

    # -- counting ----------------------------------------------------------------------------------

    def _advance(self, reader: _Reader, room_id: str, tally: Tally) -> bool:
        """Count what came since, if that takes no waiting."""
        room = self._rooms.held(room_id)
        if room is None:
            return False
        after, tail = tally.upto, self._tail
        if room.head <= after:
            return True
        if after < tail.start:
            return False
        upto = tail.pos
        notes = self._notes.known(room_id, after, upto)
        if notes is None:
            return False
        shared = None if reader.ignored else self._shared_by_all(reader.rules, room, after, upto, notes)
        if shared is None or reader.user_id in shared.senders:
            _count(reader, room, tally, notes)
        else:
            tally.take(shared)
        self._counted(reader, room, tally, upto)
        return True

    def _shared_by_all(
        self, rules: CompiledRules, room: Room, after: int, upto: int, notes: Sequence[Note]
    ) -> Shared | None:
        latest = (room.room_id, after, upto)
        if latest != self._latest:
            self._latest = latest
            self._shared.clear()
        if rules not in self._shared:
            self._shared[rules] = _shared_by_all(rules, room, notes)
        return self._shared[rules]

    def _counted(self, reader: _Reader, room: Room, tally: Tally, upto: int) -> None:
        tally.upto = max(tally.upto, upto)
        if tally.fresh >= _KEPT_EVERY:
            tally.fresh = 0
            self.keeping.note(reader.user_id, room.room_nid, reader.rules_key, tally)

    async def _load(
        self, reader: _Reader, tallies: dict[str, Tally], room_ids: Sequence[str]
    ) -> dict[str, Counts]:
        """Count rooms for which something has to be read: a few queries, however many rooms."""
        memberships = await self._memberships.of(reader.user_id)
        nids = {
            room_id: membership.room_nid
            for room_id in room_ids
            if (membership := memberships.get(room_id)) is not None and membership.membership == "join"
        }
        outdated = [id_ for id_ in nids if id_ not in tallies or tallies[id_].upto < self._tail.start]
        if outdated:
            await self._begin(reader, tallies, {id_: nids[id_] for id_ in outdated})
        counted = {id_: tallies[id_] for id_ in nids if id_ in tallies}
        upto = self._tail.pos
        notes = await self._notes.load({id_: (nids[id_], tally.upto) for id_, tally in counted.items()})
        await self._fill_gaps(reader, counted, notes, nids)
        found: dict[str, Counts] = {}
        for room_id, tally in counted.items():
            room = await self._rooms.find(room_id)
            if room is None:
                continue
            if len(notes[room_id]) > _MUCH:
                await self._turns.take()
            _count(reader, room, tally, notes[room_id])
            self._counted(reader, room, tally, upto)
            found[room_id] = tally.counts()
        return found

    async def _fill_gaps(
        self,
        reader: _Reader,
        tallies: Mapping[str, Tally],
        notes: Mapping[str, Sequence[Note]],
        nids: Mapping[str, int],
    ) -> None:
        """Count what lies between where tallies stand and the newest events, where anything does."""
        gaps = [
            TimelineSpan(room_id, nids[room_id], tally.upto, some[0].pos - 1)
            for room_id, tally in tallies.items()
            if len(some := notes[room_id]) >= MAX_EVENTS and tally.upto < some[0].pos - 1
        ]
        async for room_id, older in self._gaps.pages(gaps):
            room = await self._rooms.find(room_id)
            if room is not None:
                _count(reader, room, tallies[room_id], older)

    async def _begin(self, reader: _Reader, tallies: dict[str, Tally], nids: Mapping[str, int]) -> None:
        """Make tallies that begin where the user has read everything, or joined, or was counted for last."""
        user_id = reader.user_id
        before = self._tail.pos
        kept = await self._store.tallies(user_id, list(nids.values()), reader.rules_key)
        redacted = await self._store.redacted_since(kept.values())
        joined = await joined_at(self._store, self._memberships, user_id, nids)
        marks = await self._store.read_marks(user_id, list(nids))
        for room_id in nids:
            if (old := tallies.pop(room_id, None)) is not None:
                old.release()
            tallies[room_id] = Tally(joined[room_id], self._size)
            if (known := kept.get(nids[room_id])) is not None and known.upto >= joined[room_id]:
                tallies[room_id].resume(known, redacted.get(known.room_nid, ()))
        for mark in marks:
            tallies[mark.room_id].read(mark.thread_id, mark.pos)
        # Receipts that came while the database answered.
        for row in self._tail.rows_of_user(user_id, max(before, self._tail.start)):
            if row.kind == RECEIPT and row.room_id is not None and row.room_id in nids:
                _mark(tallies[row.room_id], row)
        for room_id in nids:
            tallies[room_id].upto = max(tallies[room_id].upto, tallies[room_id].unthreaded)
        if self._users.get(user_id) is not tallies:
            # Forgotten meanwhile: what is held here is for this one answer.
            for room_id in nids:
                tallies[room_id].release()

    # -- following the log -------------------------------------------------------------------------

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, EventRow):
                for type_, state_key in row.state_changes:
                    if type_ == MEMBER and state_key in self._users and row.membership != "join":
                        self._forget_room(state_key, row.room_id)
            elif row.user_id is not None and row.user_id in self._users:
                if row.kind == RECEIPT and row.room_id is not None:
                    tally = self._users[row.user_id].get(row.room_id)
                    if tally is not None:
                        _mark(tally, row)
                elif is_push_rules(row) or is_ignored_list(row):
                    # What counts is another thing now, for what is unread already too.
                    self._forget(row.user_id)

    def _forget(self, user_id: str) -> None:
        self._readers.pop(user_id, None)
        for tally in self._users.pop(user_id).values():
            tally.release()

    def _forget_room(self, user_id: str, room_id: str) -> None:
        tally = self._users[user_id].pop(room_id, None)
        if tally is not None:
            tally.release()


def _count(reader: _Reader, room: Room, tally: Tally, notes: Iterable[Note]) -> None:
    user_id, rules, ignored, _ = reader
    for note in notes:
        pos = note.pos
        if pos <= tally.upto:
            continue
        tally.upto = pos
        tally.fresh += 1
        if note.redacts_pos is not None:
            tally.forget(note.redacts_pos)
        if note.sender == user_id:
            # "When the user updates their read receipt (either by using the API or by sending an event)".
            # A new name or avatar, which the server brings into all rooms, is not that.
            if note.row.type != MEMBER:
                tally.read(note.thread, pos)
        elif note.row.redacted_because is None and note.sender not in ignored:
            outcome = note.outcome(rules, room)
            if outcome is None:
                display_name = _display_name(room, user_id)
                outcome = outcome_of(rules.evaluate(note.view(room), user_id, display_name))
            if outcome.notifies:
                tally.add(pos, note.thread, highlighted=outcome.highlights)


def _shared_by_all(rules: CompiledRules, room: Room, notes: Iterable[Note]) -> Shared | None:
    """Count for everybody at once (see ``_count``); None where that hangs on who reads."""
    events, senders, unread = 0, set[str](), list[Notification]()
    for note in notes:
        events += 1
        senders.add(note.sender)
        if note.redacts_pos is not None:
            return None
        if note.row.redacted_because is None:
            outcome = note.outcome(rules, room)
            if outcome is None:
                return None
            if outcome.notifies:
                unread.append((note.pos, note.thread, outcome.highlights))
    return Shared(events, frozenset(senders), unread)


def _display_name(room: Room, user_id: str) -> str | None:
    member = room.state.get((MEMBER, user_id))
    name = None if member is None else member.content.get("displayname")
    return name if isinstance(name, str) else None


def _mark(tally: Tally, row: LogRow) -> None:
    if row.key in READ_TYPES and row.body is not None:
        tally.read(row.key2 or "", orjson.loads(row.body)["event_pos"])


async def joined_at(
    store: UnreadStore, memberships: Memberships, user_id: str, nids: Mapping[str, int]
) -> dict[str, int]:
    """Give for rooms (room_id to room_nid) the position at which the user joined; 0 if they did not."""
    known = await memberships.of(user_id)
    joined: dict[str, int] = {}
    unsure: dict[int, str] = {}
    for room_id, room_nid in nids.items():
        membership = known.get(room_id)
        if membership is not None and membership.since is not None:
            joined[room_id] = membership.since
        else:
            joined[room_id] = 0
            unsure[room_nid] = room_id
    if unsure:
        changes: dict[int, list[MemberChange]] = {}
        for change in await store.member_changes(user_id, list(unsure)):
            changes.setdefault(change.room_nid, []).append(change)
        joined.update({unsure[nid]: _join_of(some) for nid, some in changes.items()})
    return joined


def _join_of(changes: Iterable[MemberChange]) -> int:
    """Give the oldest of the joins that nothing else came after, of changes with the newest first."""
    pos = 0
    for change in changes:
        content = {} if change.pdu is None else orjson.loads(change.pdu)["content"]
        if content.get("membership") != "join":
            break
        pos = change.pos
    return pos
