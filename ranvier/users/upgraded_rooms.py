"""What users set for a room goes along when the room is upgraded: tags, push rules, direct chats."""

from __future__ import annotations

import logging
from typing import Any, Final

from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError
from ranvier.spec.push_rule_edits import copy_for_room
from ranvier.users.account_data import AccountData
from ranvier.users.push_rules import PushRules
from ranvier.users.tags import Tags

logger = logging.getLogger(__name__)

DIRECT: Final = "m.direct"


class UpgradedRooms:
    """Carry settings over from the room that another one replaces.

    "When a user joins the new room, the server should automatically transfer/replicate some of the user's
    personalized settings such as notifications, tags, etc." Source: client-server API, "Room Upgrades".
    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        memberships: Memberships,
        tags: Tags,
        account_data: AccountData,
        push_rules: PushRules,
    ) -> None:
        self._rooms = rooms
        self._memberships = memberships
        self._tags = tags
        self._account_data = account_data
        self._push_rules = push_rules

    async def is_in(self, user_id: str, room_id: str) -> bool:
        """Tell whether a user is joined to a room."""
        membership = (await self._memberships.of(user_id)).get(room_id)
        return membership is not None and membership.membership == "join"

    async def carry_over(self, user_id: str, room_id: str) -> None:
        """Give a user who just came into a room what they had set for the room before it.

        What cannot be carried over is left out: the user is in the room all the same.
        """
        old = await self._replaced(user_id, room_id)
        if old is None:
            return
        try:
            await self._tags.copy(user_id, old.room_id, room_id)
            await self._push_rules.edit(user_id, lambda rules: copy_for_room(rules, old.room_id, room_id))
            await self._copy_direct(user_id, old.room_id, room_id)
        except MatrixError as error:
            logger.warning("Settings of %s do not all go along to %s: %s", user_id, room_id, error)

    async def _replaced(self, user_id: str, room_id: str) -> Room | None:
        """Find the room that a room replaces, if both say so and the user was in it."""
        room = await self._rooms.find(room_id)
        predecessor = None if room is None else _text_in(room, "m.room.create", "predecessor", "room_id")
        if predecessor is None or predecessor not in await self._memberships.of(user_id):
            return None
        old = await self._rooms.find(predecessor)
        if old is None or _text_in(old, "m.room.tombstone", "replacement_room") != room_id:
            return None
        return old

    async def _copy_direct(self, user_id: str, old_id: str, new_id: str) -> None:
        direct = await self._account_data.content(user_id, DIRECT)
        changed: dict[str, Any] = {
            other: [*rooms, new_id] if isinstance(rooms, list) and old_id in rooms else rooms
            for other, rooms in (direct or {}).items()
            if not isinstance(rooms, list) or new_id not in rooms
        }
        if direct is not None and any(changed.get(other, rooms) != rooms for other, rooms in direct.items()):
            await self._account_data.set(user_id, DIRECT, {**direct, **changed})


def _text_in(room: Room, type: str, *path: str) -> str | None:
    """Give a text in the content of a piece of state; None where there is none."""
    row = room.state.get((type, ""))
    value: Any = None if row is None else row.content
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None
