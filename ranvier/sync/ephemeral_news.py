"""Whom the newest typing and presence may concern: on a busy server it is mostly somebody else."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from ranvier.log.bus import RESET, Bus, Ephemeral
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.sync.notifier import ROOM_EPHEMERALS
from ranvier.users.presence_states import OWNER
from ranvier.wire.tokens import Token

_UNSHOWN: Final = frozenset({OWNER})
_REMEMBERED: Final = 500
_ROOMS_LOOKED_AT: Final = 200


class EphemeralNews:
    """Remember the newest, by what they are about."""

    def __init__(self, *, bus: Bus, memberships: Memberships, rooms: Rooms) -> None:
        self._bus = bus
        self._memberships = memberships
        self._rooms = rooms
        self._recent: deque[tuple[int, str, str]] = deque()
        self._forgotten = 0
        bus.listen(ephemerals=self._on_ephemeral)

    def concern(self, user_id: str, rooms: Mapping[str, Membership], since: Token) -> bool:
        """Tell whether anything after ``since`` may concern a user in these rooms; in doubt it does."""
        count, epoch = self._bus.ephemeral_now()
        if count == since.ephemeral and epoch == since.epoch:
            return False
        if epoch != since.epoch or since.ephemeral > count:
            return True
        if since.ephemeral < self._forgotten:
            return True
        for number, kind, key in reversed(self._recent):
            if number <= since.ephemeral:
                return False
            if key in rooms if kind in ROOM_EPHEMERALS else key == user_id or self._share(rooms, key):
                return True
        return False

    def _share(self, rooms: Mapping[str, Membership], user_id: str) -> bool:
        theirs = self._memberships.held(user_id)
        if theirs is not None:
            return bool(rooms.keys() & theirs.keys())
        if len(rooms) > _ROOMS_LOOKED_AT:
            return True
        return any((room := self._rooms.held(it)) is None or user_id in room.joined for it in rooms)

    def _on_ephemeral(self, message: Ephemeral) -> None:
        if message.kind == RESET:
            self._recent.clear()
            self._forgotten = 0
        elif message.kind not in _UNSHOWN:
            self._recent.append((message.count, message.kind, message.key))
            if len(self._recent) > _REMEMBERED:
                self._forgotten = self._recent.popleft()[0]
