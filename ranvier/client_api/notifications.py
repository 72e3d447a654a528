"""The list of what a user was notified about."""

from __future__ import annotations

from typing import Any

import orjson

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Route, versions
from ranvier.sync.render import Renderer
from ranvier.users.notifications import Notifications
from ranvier.wire.tokens import Token, parse_token

V3 = versions("v3", "r0")


async def get_notifications(
    request: Request, *, notifications: Notifications, renderer: Renderer
) -> dict[str, Any]:
    """List notifications, the newest first."""
    user = request.user
    before = request.str_param("from", None)
    page = await notifications.page(
        user.user_id,
        before=parse_token(before, "from").pos if before else None,
        limit=request.int_param("limit", 20, 1),
        only_highlights=request.str_param("only", None) == "highlight",
    )
    rows = [it.row for it in page.notifications]
    rendering = await renderer.prepare(
        rows, user_id=user.user_id, device_id=user.device_id, with_room_id=False
    )
    answer: dict[str, Any] = {
        "notifications": [
            {
                "actions": list(it.actions),
                "event": orjson.Fragment(rendering.event(it.row)),
                "read": it.read,
                "room_id": it.row.room_id,
                "ts": it.row.origin_server_ts,
            }
            for it in page.notifications
        ]
    }
    if page.next_pos is not None:
        answer["next_token"] = str(Token(page.next_pos))
    return answer


ROUTES = [Route("GET", V3("/notifications"), get_notifications, placed_by=PLACED_BY_USER)]
