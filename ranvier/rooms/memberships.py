"""Which rooms a user is in, invited to, has left …: in memory for active users, kept by the log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.room import MEMBER
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import PURGED_ROOM, EventRow, Row


class Membership(NamedTuple):
    """What a user is in a room; ``pos`` is the log position of the member event that says so.

    ``since`` is the position from which on the user has been this without a break (a member event may
    change no more than a name); None where only the database knows.
    """

    room_id: str
    room_nid: int
    membership: str
    event_nid: int
    pos: int
    sender: str
    since: int | None = None


class Memberships:
    """Answer for a user the membership in each room that has a member event of theirs."""

    def __init__(self, *, store: RoomStore, tail: Tail, max_users: int = 10_000) -> None:
        self._store = store
        self._tail = tail
        self._max_users = max_users
        self._users: OrderedDict[str, dict[str, Membership]] = OrderedDict()
        tail.listen(self._apply, changes=True)

    async def of(self, user_id: str) -> dict[str, Membership]:
        """Give the user's memberships by room id, as of the tail's position or a little later.

        The answer is the live object: do not change it, and copy it before awaiting.
        """
        rooms = self._users.get(user_id)
        if rooms is not None:
            self._users.move_to_end(user_id)
            return rooms
        while (rooms := self._users.get(user_id)) is None:
            await self._load(user_id)
        return rooms

    async def _load(self, user_id: str) -> None:
        """Read a user's memberships; they may have to be read again."""
        before = self._tail.pos
        rooms = {row.room_id: Membership(*row) for row in await self._store.memberships(user_id)}
        # The database may know more than the tail does yet, which nobody may be told of before.
        await self._tail.wait_for(max((m.pos for m in rooms.values()), default=0))
        if user_id in self._users or before < self._tail.start:
            return
        self._users[user_id] = rooms
        while len(self._users) > self._max_users:
            self._users.popitem(last=False)
        self._apply(self._tail.rows_since(before))  # what came while the database answered

    def held(self, user_id: str) -> dict[str, Membership] | None:
        """Give the user's memberships if they are in memory: the live object, as ``of`` does."""
        rooms = self._users.get(user_id)
        if rooms is not None:
            self._users.move_to_end(user_id)
        return rooms

    def peek(self, user_id: str) -> dict[str, Membership] | None:
        """Give the same, for one who was asked for just now."""
        return self._users.get(user_id)

    async def joined(self, user_id: str) -> list[str]:
        """Give the ids of the rooms that the user is joined to."""
        return [m.room_id for m in (await self.of(user_id)).values() if m.membership == "join"]

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not isinstance(row, EventRow):
                if row.kind == PURGED_ROOM:
                    for user_id in [it for it, rooms in self._users.items() if row.room_id in rooms]:
                        del self._users[user_id]
                continue
            for type_, state_key in row.state_changes:
                if type_ != MEMBER or state_key not in self._users:
                    continue
                own_key = row.type == MEMBER and row.state_key == state_key
                if own_key and row.state_changes.count((type_, state_key)) == 1:
                    self._set(row)
                else:  # the state was resolved to another event than this one
                    del self._users[state_key]

    def _set(self, row: EventRow) -> None:
        assert row.state_key is not None
        rooms = self._users[row.state_key]
        known = rooms.get(row.room_id)
        if (known is None or known.pos < row.pos) and row.membership is not None:
            unbroken = known is not None and known.membership == row.membership
            rooms[row.room_id] = Membership(
                row.room_id,
                row.room_nid,
                row.membership,
                row.event_nid,
                row.pos,
                row.sender,
                known.since if known is not None and unbroken else row.pos,
            )
