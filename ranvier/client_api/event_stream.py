"""The deprecated ways of following rooms, which clients still use to look into rooms that they are not in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Final

from ranvier.client_api.event_pages import limit_of
from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.timeline import IgnoredUsers
from ranvier.spec.errors import MatrixError, not_found
from ranvier.storage.events import EventStore
from ranvier.sync.event_stream import EventStream, StreamRequest
from ranvier.sync.initial_sync import InitialSync
from ranvier.sync.render import Renderer
from ranvier.users.presence import Presence
from ranvier.wire.tokens import parse_token

V3 = versions("v3", "r0")
_MAX_TIMEOUT_MS: Final = 10 * 60 * 1000
_MAX_LIMIT: Final = 100


async def events(request: Request, *, event_stream: EventStream, presence: Presence) -> bytes:
    """Tell what is new, in all rooms of the user or in one. Source: ``GET /events``, in both its forms."""
    user = request.user
    room_id = request.str_param("room_id", None)
    since = request.str_param("from", None)
    wanted = StreamRequest(
        actor=user,
        device_id=user.device_id,
        since=parse_token(since, "from") if since else None,
        timeout_s=min(request.int_param("timeout", 0), _MAX_TIMEOUT_MS) / 1000,
        room_id=room_id,
    )
    if room_id is None and user.is_guest:
        # "The following API endpoints are allowed to be accessed by guest accounts: … GET /events as used for
        # room previews."
        raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may only follow a room that they name")
    following = nullcontext() if room_id else presence.syncing(user.user_id, user.device_id, "online")
    async with following:
        return await event_stream.answer(wanted)


async def initial_sync(request: Request, *, initial_syncs: InitialSync) -> bytes:
    """Tell everything that the user has. Source: ``GET /initialSync``."""
    user = request.user
    return await initial_syncs.of_user(
        user.user_id,
        user.device_id,
        limit_of(request, maximum=_MAX_LIMIT),
        archived=request.bool_param("archived"),
    )


async def room_initial_sync(request: Request, *, initial_syncs: InitialSync) -> bytes:
    """Tell what a room is and what was said last. Source: ``GET /rooms/{roomId}/initialSync``.

    Takes ``limit`` as well, which is not in the specification and what clients send that preview a room.
    """
    user = request.user
    limit = limit_of(request, maximum=_MAX_LIMIT)
    return await initial_syncs.of_room(user, user.device_id, request.params["room_id"], limit)


async def event_by_id(
    request: Request,
    *,
    access: RoomAccess,
    events: EventStore,
    renderer: Renderer,
    ignored_users: IgnoredUsers,
) -> bytes:
    """Give an event of whatever room. Source: ``GET /events/{eventId}``."""
    user, event_id = request.user, request.params["event_id"]
    known = (await events.by_ids([event_id])).get(event_id)
    if known is None:
        raise not_found("There is no such event, or you may not see it")
    _, row = await access.access_event(user, known.room_id, event_id)
    rendering = await renderer.prepare(
        [row],
        user_id=user.user_id,
        device_id=user.device_id,
        bundled=[row],
        ignored=await ignored_users.of(user.user_id),
    )
    return rendering.event(row)


ROUTES = [
    Route("GET", V3("/events"), events, auth=Auth.GUEST, placed_by=PLACED_BY_USER, long_poll=True),
    Route("GET", V3("/events/{event_id}"), event_by_id),
    Route("GET", V3("/initialSync"), initial_sync, placed_by=PLACED_BY_USER),
    Route(
        "GET",
        V3("/rooms/{room_id}/initialSync"),
        room_initial_sync,
        auth=Auth.GUEST,
        placed_by="room_id",
    ),
]
