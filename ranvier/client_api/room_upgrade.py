"""Room upgrades."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import Route, versions
from ranvier.rooms.upgrade import RoomUpgrades
from ranvier.users.upgraded_rooms import UpgradedRooms

V3 = versions("v3", "r0")


class UpgradeBody(msgspec.Struct):
    """The body of an upgrade."""

    new_version: str
    additional_creators: list[str] = []


async def upgrade_room(
    request: Request, *, room_upgrades: RoomUpgrades, upgraded_rooms: UpgradedRooms
) -> dict[str, Any]:
    """Replace a room by one of another version."""
    body = request.json(UpgradeBody)
    room_id = await room_upgrades.upgrade(
        request.user, request.params["room_id"], body.new_version, body.additional_creators
    )
    await upgraded_rooms.carry_over(request.user.user_id, room_id)
    return {"replacement_room": room_id}


ROUTES = [
    Route(
        "POST", V3("/rooms/{room_id}/upgrade"), upgrade_room, placed_by="room_id", limit="rc_room_creation"
    ),
]
