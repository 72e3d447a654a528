"""What relates to an event, and the threads of a room."""

from __future__ import annotations

from ranvier.client_api.event_pages import limit_of, position_of, token
from ranvier.http.request import Request
from ranvier.http.route import Route, versions
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.relations import spans_in, visible_thread_roots
from ranvier.rooms.timeline import IgnoredUsers, Timeline
from ranvier.rooms.visibility import FIRST
from ranvier.spec.errors import MatrixError
from ranvier.storage.relations import RECURSION_DEPTH, RelationStore, WantedRelations
from ranvier.sync.render import Renderer

V1 = versions("v1", "unstable")
MAX_LIMIT = 100


async def related_events(
    request: Request,
    *,
    access: RoomAccess,
    timeline: Timeline,
    renderer: Renderer,
    relation_store: RelationStore,
    ignored_users: IgnoredUsers,
) -> bytes:
    """Give events that relate to an event. Source: ``GET /rooms/{roomId}/relations/{eventId}/…``."""
    params, user = request.params, request.user
    backwards = request.choice_param("dir", ("b", "f"), "b") == "b"
    recurse = request.bool_param("recurse")
    rel_type, event_type = params.get("rel_type"), params.get("event_type")
    limit = limit_of(request, minimum=1, maximum=MAX_LIMIT)
    start = await position_of(request, "from", timeline)
    to = await position_of(request, "to", timeline)
    view, target = await access.access_event(user, params["room_id"], params["event_id"])
    ignored = await ignored_users.of(user.user_id)
    newest = timeline.now
    wanted = WantedRelations(
        target_id=target.event_id,
        room_nid=target.room_nid,
        after=_either(to if backwards else start, FIRST),
        upto=_either(start if backwards else to, newest),
        limit=limit + 1,
        backwards=backwards,
        recurse=recurse,
        rel_type=rel_type,
        type=event_type,
        ignored=ignored,
    )
    found = await relation_store.page(wanted, spans=spans_in(view.room.room_nid, view.sight))
    rows = found[:limit]
    rendering = await renderer.prepare(
        rows, user_id=user.user_id, device_id=user.device_id, bundled=rows, ignored=ignored
    )
    parts = [b'"chunk":' + rendering.events(rows)]
    if len(found) > limit:
        parts.append(b'"next_batch":' + token(rows[-1].pos - 1 if backwards else rows[-1].pos))
    if start is not None:
        parts.append(b'"prev_batch":' + token(start))
    if recurse:
        parts.append(b'"recursion_depth":%d' % RECURSION_DEPTH)
    return b"{%b}" % b",".join(parts)


async def threads(
    request: Request,
    *,
    access: RoomAccess,
    timeline: Timeline,
    renderer: Renderer,
    relation_store: RelationStore,
    ignored_users: IgnoredUsers,
) -> bytes:
    """Give the threads of a room, the latest first. Source: ``GET /rooms/{roomId}/threads``."""
    user = request.user
    participated = request.choice_param("include", ("all", "participated"), "all") == "participated"
    limit = limit_of(request, minimum=1, maximum=MAX_LIMIT)
    start = await position_of(request, "from", timeline)
    view = await access.access_room(user, request.params["room_id"])
    if view.membership == "ban":
        raise MatrixError("M_FORBIDDEN", 403, "You are banned from that room")
    ignored = await ignored_users.of(user.user_id)
    found = await relation_store.thread_roots(
        view.room.room_nid,
        user_id=user.user_id,
        participated=participated,
        upto=timeline.now if start is None else start,
        ignored=ignored,
        spans=spans_in(view.room.room_nid, view.sight),
        limit=limit + 1,
    )
    roots = visible_thread_roots((row for _, row in found[:limit]), view.sight)
    rendering = await renderer.prepare(
        roots, user_id=user.user_id, device_id=user.device_id, bundled=roots, ignored=ignored
    )
    parts = [b'"chunk":' + rendering.events(roots)]
    if len(found) > limit:
        parts.append(b'"next_batch":' + token(found[limit - 1][0] - 1))
    return b"{%b}" % b",".join(parts)


def _either(pos: int | None, default: int) -> int:
    return default if pos is None else pos


_RELATIONS = "/rooms/{room_id}/relations/{event_id}"

ROUTES = [
    Route("GET", V1(_RELATIONS), related_events, placed_by="room_id"),
    Route(
        "GET",
        V1(_RELATIONS + "/{rel_type}"),
        related_events,
        placed_by="room_id",
        name="related_events_of_kind",
    ),
    Route(
        "GET",
        V1(_RELATIONS + "/{rel_type}/{event_type}"),
        related_events,
        placed_by="room_id",
        name="related_events_of_kind_and_type",
    ),
    Route("GET", V1("/rooms/{room_id}/threads"), threads, placed_by="room_id"),
]
