"""Making rooms: POST /createRoom."""

from __future__ import annotations

from typing import Any

from ranvier.http.request import Request
from ranvier.http.route import PLACED_WITH_WRITERS, Route, versions
from ranvier.rooms.create import CreateRoom, RoomCreator

V3 = versions("v3", "r0")


async def create_room(request: Request, *, room_creator: RoomCreator) -> dict[str, Any]:
    """Make a room."""
    room_id = await room_creator.create(request.user, request.json(CreateRoom, allow_empty=True))
    return {"room_id": room_id}


ROUTES = [
    Route("POST", V3("/createRoom"), create_room, placed_by=PLACED_WITH_WRITERS, limit="rc_room_creation"),
]
