"""``m.typing`` among a room's ephemeral events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import orjson

from ranvier.log.tail import Tail
from ranvier.sync.context import RoomParts, SyncContext
from ranvier.users.typing import TypingUsers
from ranvier.users.typing_rooms import Typists

_EMPTY: RoomParts = {}
_NOBODY: Final = Typists((), b"[]", 0)


class TypingSection:
    """Tell who types in the user's rooms.

    ``ignored`` gives the ids of the users of whom a user wants to hear nothing.
    """

    def __init__(
        self, *, typing_users: TypingUsers, tail: Tail, ignored: Callable[[str], Awaitable[frozenset[str]]]
    ) -> None:
        self._typing_users = typing_users
        self._tail = tail
        self._ignored = ignored

    async def initial(self, context: SyncContext, room_ids: Sequence[str]) -> RoomParts:
        """Give the rooms in which somebody types."""
        rooms = {}
        for room_id in room_ids:
            typists = self._typing_users.of(room_id)
            if typists is not None and typists.user_ids and typists.at <= context.upto.ephemeral:
                rooms[room_id] = typists
        return await self._parts(context, rooms)

    async def since(self, context: SyncContext) -> RoomParts:
        """Give the rooms in which it changed."""
        assert context.since is not None
        changed = self._typing_users.changed(context.since, context.upto)
        if changed is None:
            return await self._anew(context)
        if not changed:
            return _EMPTY
        return await self._parts(context, self._present(context, changed))

    async def _anew(self, context: SyncContext) -> RoomParts:
        # Somebody may have stopped unseen: the client must forget who typed. It is told so for the rooms that
        # were lively, which is where somebody may have been typing, and not for hundreds of others.
        lively = self._tail.rooms_with_events(context.joined, self._tail.start)
        held = [room_id for room_id in context.joined if self._typing_users.of(room_id) is not None]
        return await self._parts(context, self._present(context, {*lively, *held}))

    def _present(self, context: SyncContext, room_ids: Iterable[str]) -> dict[str, Typists]:
        joined = set(context.joined)
        return {
            room_id: self._typing_users.of(room_id) or _NOBODY
            for room_id in room_ids
            if room_id in joined and room_id not in context.newly_joined
        }

    async def _parts(self, context: SyncContext, rooms: dict[str, Typists]) -> RoomParts:
        wanted = context.filter.room.ephemeral
        if not wanted.is_everything:
            rooms = {id_: it for id_, it in rooms.items() if wanted.matches("m.typing", room_id=id_)}
        if not rooms:
            return _EMPTY
        ignored = await self._ignored(context.user_id)
        return {room_id: [_event(typists, ignored)] for room_id, typists in rooms.items()}


def _event(typists: Typists, ignored: frozenset[str]) -> bytes:
    body = typists.body
    if not ignored.isdisjoint(typists.user_ids):
        body = orjson.dumps([it for it in typists.user_ids if it not in ignored])
    return b'{"type":"m.typing","content":{"user_ids":%b}}' % body
