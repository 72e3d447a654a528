"""Who is typing where: never stored, told to every process over the bus."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from ranvier.log.bus import Bus, Ephemeral
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import forbidden
from ranvier.users.deadlines import Deadlines
from ranvier.users.typing_rooms import (
    MAX_TYPING,
    TYPING,
    WHOLE_LIST,
    Said,
    TypingRoom,
    Typist,
    Typists,
)
from ranvier.wire.log_rows import EventRow, Row
from ranvier.wire.tokens import Token

logger = logging.getLogger(__name__)

MAX_TIMEOUT_MS: Final = 120_000
_AGAIN_S: Final = 5.0
"""After which time something is told again that could not be told."""
_PATIENCE_S: Final = 5.0
_SPREAD_S: Final = 2.0
"""How long after its time another process says that a user stopped; each waits a random while more."""

_decode = msgspec.json.Decoder(Said).decode
_Key = tuple[str, str]
"""Room and user."""


class TypingUsers:
    """Know who types in which room.

    Each process knows of everybody until when they type. The one that took a user's latest request says at
    that time that the user stopped, or that they go on; if it is gone, another one does soon after. Rooms in
    which nobody types any more are remembered, as long as there are not too many, for those clients that were
    not told yet.
    """

    def __init__(
        self, *, bus: Bus, tail: Tail, memberships: Memberships, clock: Clock, max_rooms: int = 20_000
    ) -> None:
        self._bus = bus
        self._memberships = memberships
        self._clock = clock
        self._max_rooms = max_rooms
        self._name = secrets.token_hex(4)
        self._epoch = bus.ephemeral_now()[1]
        self._rooms: OrderedDict[str, TypingRoom] = OrderedDict()  # by the count of what is shown
        self._floor = 0
        self._wanted: dict[_Key, float] = {}
        self._deadlines: Deadlines[_Key] = Deadlines(clock)
        self._publishing = asyncio.Lock()
        bus.listen(ephemerals=self._on_message)
        tail.listen(self._on_rows, changes=True)

    async def set(self, user_id: str, room_id: str, typing: bool, timeout_ms: int) -> None:
        """Note that a user types for at most ``timeout_ms``, or types no more.

        Raises 403 ``M_FORBIDDEN`` for who is not in the room.
        """
        membership = (await self._memberships.of(user_id)).get(room_id)
        if membership is None or membership.membership != "join":
            raise forbidden("You are not in this room")
        key = (room_id, user_id)
        # One at a time: what is told depends on what was told before.
        async with self._publishing:
            typist = self._typist(key)
            if not typing or timeout_ms <= 0:
                self._wanted.pop(key, None)
                if typist is not None:
                    await self._tell(key, None)
                return
            until = self._clock.monotonic() + min(timeout_ms, MAX_TIMEOUT_MS) / 1000
            if typist is None:
                if len(self._room(room_id).typists) < MAX_TYPING:
                    self._wanted[key] = until
                    await self._tell(key, until)
                return
            self._wanted[key] = until
            if typist.by == self._name:
                # It is told when the time comes that was told before.
                self._deadlines.set(key, min(until, typist.until))
            else:
                await self._tell(key, until)

    def of(self, room_id: str) -> Typists | None:
        """Give who types in a room, None if nobody did lately."""
        room = self._rooms.get(room_id)
        return room.shown if room is not None else None

    def changed(self, since: Token, upto: Token) -> list[str] | None:
        """Give the rooms in which it changed between two tokens.

        None where that is not known any more: the counter began anew, or it is too long ago.
        """
        if since.epoch != upto.epoch or self._epoch != upto.epoch or since.ephemeral < self._floor:
            return None
        rooms: list[str] = []
        for room_id, room in reversed(self._rooms.items()):
            if room.shown.at <= since.ephemeral:
                break
            if room.shown.at <= upto.ephemeral:
                rooms.append(room_id)
        return rooms

    async def run(self) -> None:
        """End what timed out, for ever."""
        while True:
            await self._deadlines.wait()
            await self.expire()

    async def expire(self) -> None:
        """Tell of those whose time came until now that they stopped, or go on."""
        for key in self._deadlines.due():
            try:
                async with self._publishing:
                    await self._go_on_or_stop(key)
            except Exception:
                # One room must not be in the way of all others.
                logger.exception("It cannot be told whether %s types in %s any more", key[1], key[0])
                self._deadlines.set(key, self._clock.monotonic() + _AGAIN_S)

    async def _go_on_or_stop(self, key: _Key) -> None:
        typist, wanted = self._typist(key), self._wanted.get(key, 0.0)
        if typist is None:
            self._wanted.pop(key, None)
        elif wanted > self._clock.monotonic():
            await self._tell(key, wanted, seen=typist.at)
        else:
            await self._tell(key, None, seen=typist.at)

    async def _tell(self, key: _Key, until: float | None, *, seen: int | None = None) -> None:
        room_id, user_id = key
        message = self._room(room_id).message(self._name, user_id, until, self._clock.monotonic(), seen=seen)
        told = await self._bus.publish_ephemeral(TYPING, room_id, message)
        if told is not None:
            return
        if self._typist(key) is not None:
            self._deadlines.set(key, self._clock.monotonic() + _AGAIN_S)
        else:
            self._wanted.pop(key, None)  # who begins to type says so again in a few seconds by themselves

    def _room(self, room_id: str) -> TypingRoom:
        return self._rooms.get(room_id) or TypingRoom()

    def _typist(self, key: _Key) -> Typist | None:
        return self._room(key[0]).typists.get(key[1])

    def _on_message(self, message: Ephemeral) -> None:
        if message.epoch != self._epoch:
            # What was said before is void; whoever goes on typing says so again.
            self._epoch = message.epoch
            self._rooms.clear()
            self._wanted.clear()
            self._floor = 0
        if message.kind == WHOLE_LIST:
            # It is not shown here; who saw it at the other process is told what is shown here.
            room = self._room(message.key)
            room.shown = room.shown._replace(at=message.count)
            self._show(message.key, room)
        elif message.kind == TYPING:
            self._hear(message.key, _decode(message.body), message.count)

    def _hear(self, room_id: str, said: Said, count: int) -> None:
        room = self._room(room_id)
        for user_id in room.hear(said, count, self._clock.monotonic()):
            self._watch((room_id, user_id), room.typists.get(user_id))
        if room.shown.at == count:
            self._show(room_id, room)

    def _watch(self, key: _Key, typist: Typist | None) -> None:
        if typist is not None and typist.by == self._name:
            self._deadlines.set(key, min(typist.until, self._wanted.get(key, typist.until)))
            return
        self._wanted.pop(key, None)
        if typist is None:
            self._deadlines.drop(key)
        else:
            self._deadlines.set(key, typist.until + _PATIENCE_S + random.random() * _SPREAD_S)

    def _show(self, room_id: str, room: TypingRoom) -> None:
        self._rooms[room_id] = room
        self._rooms.move_to_end(room_id)
        while len(self._rooms) > self._max_rooms:
            self._floor = self._rooms.popitem(last=False)[1].shown.at

    def _on_rows(self, rows: Sequence[Row]) -> None:
        if not self._wanted:
            return
        for row in rows:
            if not isinstance(row, EventRow):
                continue
            for type_, user_id in row.state_changes:
                # Who is not in the room any more does not type in it.
                key = (row.room_id, user_id)
                if type_ == MEMBER and key in self._wanted and row.membership != "join":
                    self._wanted[key] = self._clock.monotonic()
                    self._deadlines.set(key, self._clock.monotonic())
