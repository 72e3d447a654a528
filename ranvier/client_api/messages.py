"""Paging through a room's history, and finding a point in it by time."""

from __future__ import annotations

from collections.abc import Collection

from ranvier.client_api.event_pages import (
    event_array,
    filter_of,
    json_text,
    limit_of,
    members_of,
    position_of,
    token,
)
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.access import RoomAccess, View
from ranvier.rooms.timeline import IgnoredUsers, Page, Timeline
from ranvier.rooms.visibility import FIRST, LAST
from ranvier.spec.errors import not_found
from ranvier.spec.filters import RoomEventFilter
from ranvier.storage.events import EventStore
from ranvier.sync.render import Renderer

V3 = versions("v3", "r0")
V1 = versions("v1")


async def messages(
    request: Request,
    *,
    access: RoomAccess,
    timeline: Timeline,
    renderer: Renderer,
    ignored_users: IgnoredUsers,
) -> bytes:
    """Give a page of history. Source: client-server API, ``GET /rooms/{roomId}/messages``."""
    backwards = request.choice_param("dir", ("b", "f")) == "b"
    limit = limit_of(request)
    filter = filter_of(request)
    if filter.limit is not None:
        limit = min(limit, filter.limit)
    start = await position_of(request, "from", timeline)
    to = await position_of(request, "to", timeline)
    view = await access.access_room(request.user, request.params["room_id"])
    ignored = await ignored_users.of(view.user_id)
    first = start is None and not backwards
    if start is None:
        start = timeline.now if backwards else FIRST
    page = Page([], None)
    if limit and not filter.is_nothing and filter.matches_room(view.room.room_id):
        page = await _page(timeline, view, backwards, start, to, limit, filter, ignored)
    rows = page.rows
    rendering = await renderer.prepare(
        rows, user_id=view.user_id, device_id=request.user.device_id, bundled=rows, ignored=ignored
    )
    if first:
        start = rows[0].pos - 1 if rows else 0
    end = page.end if limit else start
    parts = [b'"start":' + token(start), b'"chunk":' + await event_array(rendering, rows)]
    if end is not None:
        parts.append(b'"end":' + token(end))
    if filter.lazy_load_members and rows:
        members = members_of(await access.state(view), rows)
        shown = await renderer.prepare(members, user_id=view.user_id)
        parts.append(b'"state":' + await event_array(shown, members))
    return b"{%b}" % b",".join(parts)


async def _page(
    timeline: Timeline,
    view: View,
    backwards: bool,
    start: int,
    to: int | None,
    limit: int,
    filter: RoomEventFilter,
    ignored: Collection[str],
) -> Page:
    if backwards:
        return await timeline.backwards(
            view,
            upto=start,
            after=FIRST if to is None else to,
            limit=limit,
            filter=filter,
            ignored=ignored,
        )
    return await timeline.forwards(
        view, after=start, upto=LAST if to is None else to, limit=limit, filter=filter, ignored=ignored
    )


async def timestamp_to_event(request: Request, *, access: RoomAccess, events: EventStore) -> bytes:
    """Find the event nearest to a time. Source: ``GET /rooms/{roomId}/timestamp_to_event``."""
    forwards = request.choice_param("dir", ("f", "b")) == "f"
    ts_ms = request.int_param("ts")
    view = await access.access_room(request.user, request.params["room_id"])
    found = await events.nearest(view.room.room_nid, ts_ms, forwards=forwards, spans=view.sight.spans)
    if found is None:
        raise not_found(f"There is no event {'after' if forwards else 'before'} that time")
    event_id, origin_server_ts = found
    return b'{"event_id":%b,"origin_server_ts":%d}' % (json_text(event_id), origin_server_ts)


ROUTES = [
    Route("GET", V3("/rooms/{room_id}/messages"), messages, auth=Auth.GUEST, placed_by="room_id"),
    Route("GET", V1("/rooms/{room_id}/timestamp_to_event"), timestamp_to_event, placed_by="room_id"),
]
