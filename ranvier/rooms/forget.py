"""Forgetting rooms: they are not told of any more until the user comes back to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.spec.errors import MatrixError
from ranvier.storage.forgotten_rooms import ForgottenRoomStore
from ranvier.wire.log_rows import LogRow, Row

FORGOTTEN_ROOM: Final = "forgotten_room"


class ForgottenRooms:
    """Know and change which rooms users forgot: in memory for active users, kept by the log.

    A room is forgotten as long as forgetting it is the last that the user did about it: a member event
    of theirs with a higher position brings it back.
    """

    def __init__(
        self,
        *,
        store: ForgottenRoomStore,
        memberships: Memberships,
        appender: Appender,
        tail: Tail,
        max_users: int = 10_000,
    ) -> None:
        self._store = store
        self._memberships = memberships
        self._appender = appender
        self._tail = tail
        self._max_users = max_users
        self._users: OrderedDict[str, dict[str, int]] = OrderedDict()
        tail.listen(self._apply, changes=True)

    async def of(self, user_id: str) -> frozenset[str]:
        """Give the ids of the rooms that the user forgot and did not come back to."""
        positions = await self._positions(user_id)
        if not positions:
            return frozenset()
        rooms = await self._memberships.of(user_id)
        return frozenset(
            room_id
            for room_id, pos in positions.items()
            if (membership := rooms.get(room_id)) is None or membership.pos < pos
        )

    async def is_forgotten(self, user_id: str, room_id: str) -> bool:
        """Tell whether the user forgot the room and did not come back to it."""
        return room_id in await self.of(user_id)

    async def forget(self, user_id: str, room_id: str) -> None:
        """Forget a room. Raises 400 ``M_UNKNOWN`` while the user is in it, invited or knocking.

        A room that the user never had to do with is nothing to forget, and no error.
        """
        membership = (await self._memberships.of(user_id)).get(room_id)
        if membership is None:
            return
        if membership.membership not in ("leave", "ban"):
            raise MatrixError("M_UNKNOWN", 400, f"User {user_id} is in room {room_id}: leave it first")
        if await self.is_forgotten(user_id, room_id):
            return
        pos = await self._appender.append_rows(
            [LogRow(kind=FORGOTTEN_ROOM, user_id=user_id, room_id=room_id)]
        )
        await self._tail.wait_for(pos)

    async def _positions(self, user_id: str) -> dict[str, int]:
        known = self._users.get(user_id)
        if known is not None:
            self._users.move_to_end(user_id)
            return known
        before = self._tail.pos
        stored = await self._store.of_user(user_id)
        if (meanwhile := self._users.get(user_id)) is not None:
            return meanwhile
        self._users[user_id] = stored
        for row in self._tail.rows_of_user(user_id, max(before, self._tail.start)):
            self._set(row)
        while len(self._users) > self._max_users:
            self._users.popitem(last=False)
        return stored

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, LogRow) and row.user_id in self._users:
                self._set(row)

    def _set(self, row: LogRow) -> None:
        if row.kind == FORGOTTEN_ROOM and row.user_id is not None and row.room_id is not None:
            positions = self._users[row.user_id]
            positions[row.room_id] = max(row.pos, positions.get(row.room_id, 0))
