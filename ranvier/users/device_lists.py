"""Whose keys a client should ask for anew, and whose it need not follow any more.

Source: client-server API, "Tracking the device list for a user".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER
from ranvier.rooms.rooms import Rooms
from ranvier.storage.device_lists import DeviceListStore, Move
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow, LogRow, Row

_FEW = 50
_MAX_REMEMBERED = 20_000
_EVENTS_AT_ONCE = 500
_MOVES_AT_ONCE = 2000


class DeviceListChanges(NamedTuple):
    """``changed``: whose keys are new, or who shares a room now and did not; ``left``: who does no more."""

    changed: set[str]
    left: set[str]


class _Seen(NamedTuple):
    pos: int
    room_id: str
    user_id: str
    joined: bool | None
    before_nid: int | None


class DeviceLists:
    """Say what changed after a token, from the tail where it reaches back so far, else from the database.

    From the tail it costs the rows about devices and memberships that came after the token, of the whole
    server, and is otherwise independent of how many rooms there are and how many members they have.
    """

    def __init__(
        self,
        *,
        store: DeviceListStore,
        events: EventStore,
        memberships: Memberships,
        rooms: Rooms,
        tail: Tail,
    ) -> None:
        self._store = store
        self._events = events
        self._memberships = memberships
        self._rooms = rooms
        self._tail = tail
        self._changes: deque[tuple[int, str]] = deque()
        self._moves: deque[_Seen] = deque()
        self._was_join: OrderedDict[int, bool] = OrderedDict()
        self._reading = asyncio.Lock()
        self._apply(tail.rows_since(tail.start))
        tail.listen(self._apply, changes=True)

    async def since(self, user_id: str, after: int) -> DeviceListChanges:
        """Give what changed for a user after a position of the log.

        A little more than that may be named, which costs clients a query; never less.
        """
        if after >= self._tail.start:
            moves = self._moves_after(after, user_id, await self._rooms_of(user_id, after))
            changed = await self._changed_after(user_id, after)
        else:
            moves = await self._store.moves(user_id, after)
            changed = await self._store.changed(user_id, after)
        if not moves:
            return DeviceListChanges(changed, set())
        arrived, departed = await self._sort(user_id, moves)
        await asyncio.sleep(0)
        departed -= arrived
        left = departed - await self._sharing(user_id, departed) if departed else set()
        return DeviceListChanges(changed | arrived, left - {user_id})

    # -- from the tail -------------------------------------------------------------------------------

    async def _changed_after(self, user_id: str, after: int) -> set[str]:
        candidates: set[str] = set()
        for pos, changed in reversed(self._changes):
            if pos <= after:
                break
            candidates.add(changed)
        sharing = await self._sharing(user_id, candidates - {user_id}) if candidates else set()
        if user_id in candidates:
            sharing.add(user_id)
        for row in self._tail.rows_of_user(user_id, after):
            if row.kind == "user_signature" and row.key is not None:
                sharing.add(row.key)
        return sharing

    async def _rooms_of(self, user_id: str, after: int) -> set[str]:
        """Name the rooms that the user is in, or was in at some time after a position."""
        if not self._moves or self._moves[-1].pos <= after:
            return set()  # nobody moved: it does not matter
        rooms = set(await self._memberships.joined(user_id))
        for seen in reversed(self._moves):
            if seen.pos <= after:
                break
            if seen.user_id == user_id:
                rooms.add(seen.room_id)
        return rooms

    def _moves_after(self, after: int, user_id: str, rooms: set[str]) -> list[Move]:
        """Give one move for each user and room: the last membership, and what was before the first."""
        moves: dict[tuple[str, str], Move] = {}
        for seen in reversed(self._moves):
            if seen.pos <= after:
                break
            if seen.room_id in rooms:
                key = (seen.room_id, seen.user_id)
                joined = moves[key].joined if key in moves else seen.joined
                moves[key] = Move(seen.room_id, seen.user_id, joined, seen.before_nid)
        return list(moves.values())

    def _apply(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if isinstance(row, LogRow):
                if row.kind == "device_list" and row.user_id is not None:
                    self._changes.append((row.pos, row.user_id))
                continue
            for type_, state_key in row.state_changes:
                if type_ == MEMBER:
                    self._moves.append(self._seen(row, state_key))
        while self._changes and self._changes[0][0] <= self._tail.start:
            self._changes.popleft()
        while self._moves and self._moves[0].pos <= self._tail.start:
            self._moves.popleft()

    def _seen(self, row: EventRow, user_id: str) -> _Seen:
        if row.type == MEMBER and row.state_key == user_id:
            return _Seen(row.pos, row.room_id, user_id, row.membership == "join", row.replaces_nid)
        # The state was resolved to an event that came earlier: the room knows to which.
        return _Seen(row.pos, row.room_id, user_id, joined=None, before_nid=None)

    # -- both ----------------------------------------------------------------------------------------

    async def _sort(self, user_id: str, moves: Sequence[Move]) -> tuple[set[str], set[str]]:
        """Give those who may be new to the user, and those whom the user may have lost."""
        asked = (move.before_nid for move in moves if move.joined or move.user_id == user_id)
        joins = {nid for nid in asked if nid is not None}
        await asyncio.sleep(0)
        were_joins = await self._were_joins(joins)
        # The user was in these neither then nor now, and may not learn who is (an invitation declined, say).
        outside = {
            move.room_id
            for move in moves
            if move.user_id == user_id and move.joined is False and move.before_nid not in were_joins
        }
        arrived: set[str] = set()
        departed: set[str] = set()
        for number, move in enumerate(moves, 1):
            if number % _MOVES_AT_ONCE == 0:
                await asyncio.sleep(0)  # others get their turn
            if move.room_id in outside or (move.joined and move.before_nid in were_joins):
                continue  # or it is a new name or picture
            if move.joined is not None and move.user_id != user_id:
                (arrived if move.joined else departed).add(move.user_id)
                continue
            room = await self._rooms.find(move.room_id)
            members = room.joined if room is not None else frozenset()
            joined = move.user_id in members if move.joined is None else move.joined
            (arrived if joined else departed).update(members if move.user_id == user_id else (move.user_id,))
            await asyncio.sleep(0)
        arrived.discard(user_id)
        await asyncio.sleep(0)
        here = set(await self._memberships.joined(user_id))
        gone = {m.user_id for m in moves if m.joined and m.user_id != user_id and m.room_id not in here}
        # Who joined a room that the user has left since is no company, unless elsewhere.
        return arrived - (gone - await self._sharing(user_id, gone) if gone else set()), departed

    async def _sharing(self, user_id: str, others: set[str]) -> set[str]:
        """Name those of ``others`` who share a room with the user now."""
        if len(others) > _FEW:
            return await self._store.sharing(user_id, list(others))
        if not others:
            return set()
        rooms = set(await self._memberships.joined(user_id))
        sharing = set()
        for other in others:
            theirs = (await self._memberships.of(other)).values()
            if any(m.membership == "join" and m.room_id in rooms for m in theirs):
                sharing.add(other)
        return sharing

    async def _were_joins(self, nids: set[int]) -> set[int]:
        """Say which of these member events are joins; each is read once, however many users ask."""
        if not nids <= self._was_join.keys():
            async with self._reading:
                unknown = [nid for nid in nids if nid not in self._was_join]
                for start in range(0, len(unknown), _EVENTS_AT_ONCE):
                    piece = unknown[start : start + _EVENTS_AT_ONCE]
                    rows = await self._events.by_nids(piece)
                    for nid in piece:
                        self._was_join[nid] = nid in rows and rows[nid].membership == "join"
        joins = {nid for nid in nids if self._was_join.get(nid)}
        while len(self._was_join) > _MAX_REMEMBERED:
            self._was_join.popitem(last=False)
        return joins
