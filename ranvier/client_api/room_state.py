"""The state of a room: all of it, one piece, its members."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from ranvier.client_api.event_pages import event_array, position_of
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.room import MEMBER
from ranvier.rooms.timeline import Timeline
from ranvier.spec.errors import not_found
from ranvier.sync.render import Renderer, Rendering
from ranvier.wire.log_rows import EventRow

V3 = versions("v3", "r0")
_AT_ONCE: Final = 500
_LOOKED_AT_ONCE: Final = 5000
_MEMBERSHIPS: Final = ("join", "invite", "knock", "leave", "ban")


async def all_state(request: Request, *, access: RoomAccess, renderer: Renderer) -> bytes:
    """Give all state events. Source: client-server API, ``GET /rooms/{roomId}/state``."""
    user = request.user
    view = await access.access_room(user, request.params["room_id"])
    rows = list((await access.state(view)).values())
    rendering = await renderer.prepare(rows, user_id=user.user_id, device_id=user.device_id)
    return await event_array(rendering, rows)


async def one_state(request: Request, *, access: RoomAccess, renderer: Renderer) -> bytes:
    """Give one piece of state. Source: ``GET /rooms/{roomId}/state/{eventType}/{stateKey}``."""
    params, user = request.params, request.user
    format = request.choice_param("format", ("content", "event"), "content")
    view = await access.access_room(user, params["room_id"])
    row = (await access.state(view)).get((params["event_type"], params.get("state_key", "")))
    if row is None:
        raise not_found("The room has no such state")
    rendering = await renderer.prepare([row], user_id=user.user_id, device_id=user.device_id)
    return rendering.content(row) if format == "content" else rendering.event(row)


async def members(request: Request, *, access: RoomAccess, timeline: Timeline, renderer: Renderer) -> bytes:
    """Give member events. Source: client-server API, ``GET /rooms/{roomId}/members``."""
    membership = request.choice_param("membership", ("", *_MEMBERSHIPS), "")
    not_membership = request.choice_param("not_membership", ("", *_MEMBERSHIPS), "")
    at = await position_of(request, "at", timeline)
    user = request.user
    view = await access.access_room(user, request.params["room_id"])
    state = await access.state(view, at)
    rows = [row for (type_, _), row in state.items() if type_ == MEMBER]
    if membership or not_membership:
        rows = await _wanted(rows, membership, not_membership)
    rendering = await renderer.prepare(rows, user_id=user.user_id, device_id=user.device_id)
    return await event_array(rendering, rows, b'{"chunk":', b"}")


async def _wanted(rows: Sequence[EventRow], membership: str, not_membership: str) -> list[EventRow]:
    """Filter member events: "the two parameters create an 'or' condition"."""
    wanted: list[EventRow] = []
    for first in range(0, len(rows), _LOOKED_AT_ONCE):
        await asyncio.sleep(0)  # others get their turn
        wanted += [
            row
            for row in rows[first : first + _LOOKED_AT_ONCE]
            if (membership and row.membership == membership)
            or (not_membership and row.membership != not_membership)
        ]
    return wanted


async def joined_members(request: Request, *, access: RoomAccess, renderer: Renderer) -> bytes:
    """Give who is joined, with names and avatars. Source: ``GET /rooms/{roomId}/joined_members``."""
    user = request.user
    view = await access.access_joined(user, request.params["room_id"])
    user_ids, state = list(view.room.joined), view.room.state
    # What the reader saw of the room is looked up with any of its events.
    rendering = await renderer.prepare([state[MEMBER, user.user_id]], user_id=user.user_id)
    parts = []
    for first in range(0, len(user_ids), _AT_ONCE):
        some = [state[MEMBER, user_id] for user_id in user_ids[first : first + _AT_ONCE]]
        parts += [_shown_member(row, rendering) for row in some if row.membership == "join"]
        await asyncio.sleep(0)  # others get their turn, and somebody may leave
    return b'{"joined":{%b}}' % b",".join(parts)


def _shown_member(row: EventRow, rendering: Rendering) -> bytes:
    content = {} if rendering.hides(row) else row.read_once["content"]
    shown = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
    texts = {name: value for name, value in shown.items() if isinstance(value, str)}
    return b"%b:%b" % (orjson.dumps(row.state_key), orjson.dumps(texts))


_STATE = "/rooms/{room_id}/state"

ROUTES = [
    Route("GET", V3(_STATE), all_state, auth=Auth.GUEST, placed_by="room_id"),
    Route("GET", V3(_STATE + "/{event_type}/{state_key}"), one_state, auth=Auth.GUEST, placed_by="room_id"),
    Route(
        "GET",
        V3(_STATE + "/{event_type}") + V3(_STATE + "/{event_type}/"),
        one_state,
        auth=Auth.GUEST,
        placed_by="room_id",
        name="one_state_without_key",
    ),
    Route("GET", V3("/rooms/{room_id}/members"), members, auth=Auth.GUEST, placed_by="room_id"),
    Route("GET", V3("/rooms/{room_id}/joined_members"), joined_members, placed_by="room_id"),
]
