"""Who is typing where: never stored, told to every process over the bus."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import orjson

from ranvier.log.bus import Bus, Ephemeral
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import forbidden
from ranvier.users.deadlines import Deadlines
from ranvier.wire.log_rows import EventRow, Row
from ranvier.wire.tokens import Token

logger = logging.getLogger(__name__)

TYPING: Final = "typing"
MAX_TIMEOUT_MS: Final = 120_000
MAX_TYPING: Final = 50
"""Users of one room that are told of at a time: more is no use, and each change is sent to everybody."""

# Longer than any user may type without a message: then the process that should have said so is gone.
_ABANDONED_S: Final = MAX_TIMEOUT_MS / 1000 + 10
_AGAIN_S: Final = 5.0
"""After which time it is said that nobody types, if it could not be told who stopped."""


class Typists(NamedTuple):
    """Who types in a room: ``body`` is the JSON of ``user_ids``; ``at`` the count of the bus."""

    user_ids: tuple[str, ...]
    body: bytes
    at: int


_Key = tuple[str, str]
"""Room and user; the user is empty for the deadline of the whole room."""


class TypingUsers:
    """Know who types in which room.

    Each message on the bus holds the whole list of a room, so that losing one is made good by the next.
    The process that took a request watches over its timeout. Rooms in which nobody types any more are
    remembered, as long as there are not too many, for those clients that were not told yet.
    """

    def __init__(
        self, *, bus: Bus, tail: Tail, memberships: Memberships, clock: Clock, max_rooms: int = 20_000
    ) -> None:
        self._bus = bus
        self._memberships = memberships
        self._clock = clock
        self._max_rooms = max_rooms
        self._epoch = bus.ephemeral_now()[1]
        self._rooms: OrderedDict[str, Typists] = OrderedDict()  # by count
        self._floor = 0
        self._deadlines: Deadlines[_Key] = Deadlines(clock)
        self._publishing = asyncio.Lock()
        bus.listen(ephemerals=self._on_message)
        tail.listen(self._on_rows)

    async def set(self, user_id: str, room_id: str, typing: bool, timeout_ms: int) -> None:
        """Note that a user types for at most ``timeout_ms``, or types no more.

        Raises 403 ``M_FORBIDDEN`` for who is not in the room.
        """
        membership = (await self._memberships.of(user_id)).get(room_id)
        if membership is None or membership.membership != "join":
            raise forbidden("You are not in this room")
        key = (room_id, user_id)
        if not typing or timeout_ms <= 0:
            self._deadlines.drop(key)
            await self._publish(room_id, lambda users: [it for it in users if it != user_id])
            return
        self._deadlines.set(key, self._clock.monotonic() + min(timeout_ms, MAX_TIMEOUT_MS) / 1000)
        await self._publish(room_id, lambda users: [*users, user_id] if user_id not in users else users)

    def of(self, room_id: str) -> Typists | None:
        """Give who types in a room, None if nobody did lately."""
        return self._rooms.get(room_id)

    def changed(self, since: Token, upto: Token) -> list[str] | None:
        """Give the rooms in which it changed between two tokens.

        None where that is not known any more: the counter began anew, or it is too long ago.
        """
        if since.epoch != upto.epoch or self._epoch != upto.epoch or since.ephemeral < self._floor:
            return None
        rooms: list[str] = []
        for room_id, typists in reversed(self._rooms.items()):
            if typists.at <= since.ephemeral:
                break
            if typists.at <= upto.ephemeral:
                rooms.append(room_id)
        return rooms

    async def run(self) -> None:
        """End what timed out, for ever."""
        while True:
            await self._deadlines.wait()
            await self.expire()

    async def expire(self) -> None:
        """Tell of those who timed out until now."""
        gone: dict[str, set[str]] = {}
        for room_id, user_id in self._deadlines.due():
            gone.setdefault(room_id, set()).add(user_id)
        for room_id, user_ids in gone.items():
            try:
                await self._publish(room_id, _without(user_ids))
            except Exception:
                # One room must not be in the way of all others.
                logger.exception("It cannot be told who types in %s no more", room_id)

    async def _publish(self, room_id: str, change: Callable[[Sequence[str]], Sequence[str]]) -> None:
        # One at a time: each list is made from the one before.
        async with self._publishing:
            known = self._rooms.get(room_id)
            users = known.user_ids if known is not None else ()
            wanted = tuple(change(users))[:MAX_TYPING]
            if wanted != users:
                told = await self._bus.publish_ephemeral(TYPING, room_id, orjson.dumps(list(wanted)))
                # It can not be told now: who begins to type says so again in a few seconds by themselves.
                if told is None and len(wanted) < len(users):
                    self._deadlines.set((room_id, ""), self._clock.monotonic() + _AGAIN_S)

    def _on_message(self, message: Ephemeral) -> None:
        if message.epoch != self._epoch:
            # What was said before is void; whoever goes on typing says so again.
            self._epoch = message.epoch
            self._rooms.clear()
            self._floor = 0
        if message.kind != TYPING:
            return
        known = self._rooms.get(message.key)
        if known is not None and known.at >= message.count:
            return
        user_ids = tuple(orjson.loads(message.body))
        self._rooms[message.key] = Typists(user_ids, message.body, message.count)
        self._rooms.move_to_end(message.key)
        if user_ids:
            self._deadlines.set((message.key, ""), self._clock.monotonic() + _ABANDONED_S)
        else:
            self._deadlines.drop((message.key, ""))
        while len(self._rooms) > self._max_rooms:
            self._floor = self._rooms.popitem(last=False)[1].at

    def _on_rows(self, rows: Sequence[Row]) -> None:
        if not self._deadlines:
            return
        for row in rows:
            # Who is not in the room any more does not type in it.
            if isinstance(row, EventRow) and row.type == MEMBER and row.membership != "join":
                key = (row.room_id, row.state_key or "")
                if key in self._deadlines:
                    self._deadlines.set(key, self._clock.monotonic())


def _without(user_ids: set[str]) -> Callable[[Sequence[str]], Sequence[str]]:
    if "" in user_ids:
        return lambda users: ()
    return lambda users: [it for it in users if it not in user_ids]
