"""What happened around an event."""

from __future__ import annotations

from ranvier.client_api.event_pages import event_array, filter_of, limit_of, members_of, token
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.access import RoomAccess, State
from ranvier.rooms.room import MEMBER
from ranvier.rooms.timeline import IgnoredUsers, Page, Timeline, wanted_by
from ranvier.spec.filters import RoomEventFilter
from ranvier.sync.render import Renderer
from ranvier.wire.log_rows import EventRow

V3 = versions("v3", "r0")
MAX_LIMIT = 200


async def event_context(
    request: Request,
    *,
    access: RoomAccess,
    timeline: Timeline,
    renderer: Renderer,
    ignored_users: IgnoredUsers,
) -> bytes:
    """Give events and state around an event. Source: ``GET /rooms/{roomId}/context/{eventId}``."""
    params, user = request.params, request.user
    limit = limit_of(request, maximum=MAX_LIMIT)
    filter = filter_of(request)
    view, row = await access.access_event(user, params["room_id"], params["event_id"])
    ignored = await ignored_users.of(user.user_id)
    before = after = Page([], None)
    if limit and row.pos and not filter.is_nothing and filter.matches_room(view.room.room_id):
        if limit // 2:
            before = await timeline.backwards(
                view, upto=row.pos - 1, limit=limit // 2, filter=filter, ignored=ignored
            )
        after = await timeline.forwards(
            view, after=row.pos, limit=limit - limit // 2, filter=filter, ignored=ignored
        )
    rows = [*before.rows, row, *after.rows]
    last = after.rows[-1] if after.rows else row
    state = _wanted_state(await access.state(view, last.pos or None), rows, filter)
    rendering = await renderer.prepare(
        [*rows, *state], user_id=user.user_id, device_id=user.device_id, bundled=rows, ignored=ignored
    )
    oldest = before.rows[-1] if before.rows else row
    around = b'{"start":%b,"end":%b,"events_before":%b,"event":%b,"events_after":%b,"state":' % (
        token(oldest.pos - 1),
        token(last.pos),
        rendering.events(before.rows),
        rendering.event(row),
        rendering.events(after.rows),
    )
    return await event_array(rendering, state, around, b"}")


def _wanted_state(state: State, rows: list[EventRow], filter: RoomEventFilter) -> list[EventRow]:
    shown = list(state.values())
    if filter.lazy_load_members:
        shown = [row for row in shown if row.type != MEMBER] + members_of(state, rows)
    wanted = wanted_by(filter, ())
    return shown if wanted is None else [row for row in shown if wanted(row)]


ROUTES = [
    Route(
        "GET",
        V3("/rooms/{room_id}/context/{event_id}"),
        event_context,
        auth=Auth.GUEST,
        placed_by="room_id",
    ),
]
