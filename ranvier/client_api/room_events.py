"""One event of a room, by its id."""

from __future__ import annotations

from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.timeline import IgnoredUsers
from ranvier.sync.render import Renderer

V3 = versions("v3", "r0")


async def event(
    request: Request, *, access: RoomAccess, renderer: Renderer, ignored_users: IgnoredUsers
) -> bytes:
    """Give one event. Source: client-server API, ``GET /rooms/{roomId}/event/{eventId}``."""
    params, user = request.params, request.user
    _, row = await access.access_event(user, params["room_id"], params["event_id"])
    rendering = await renderer.prepare(
        [row],
        user_id=user.user_id,
        device_id=user.device_id,
        bundled=[row],
        ignored=await ignored_users.of(user.user_id),
    )
    return rendering.event(row)


ROUTES = [
    Route("GET", V3("/rooms/{room_id}/event/{event_id}"), event, auth=Auth.GUEST, placed_by="room_id"),
]
