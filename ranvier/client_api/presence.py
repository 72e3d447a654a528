"""Presence: the user's own, and that of others."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Route, versions
from ranvier.spec.errors import forbidden, invalid_param
from ranvier.spec.ids import is_user_id
from ranvier.users.presence import Presence
from ranvier.users.shown_presence import ShownPresence

V3 = versions("v3", "r0")

MAX_STATUS_LENGTH: Final = 2048


class Status(msgspec.Struct, frozen=True):
    """Body of ``PUT /presence/{user_id}/status``."""

    presence: Literal["online", "offline", "unavailable"]
    status_msg: str | None = None


async def set_presence(request: Request, *, presence: Presence) -> bytes:
    """Set the user's own presence and status message."""
    body = request.json(Status)
    user = request.user
    if request.params["user_id"] != user.user_id:
        raise forbidden("You cannot set the presence state of another user")
    user.require_unsuspended()
    status_msg = body.status_msg
    if status_msg is not None and len(status_msg) > MAX_STATUS_LENGTH:
        raise invalid_param(f"status_msg has at most {MAX_STATUS_LENGTH} characters")
    await presence.set(user.user_id, user.device_id, body.presence, status_msg or None)
    return b"{}"


async def get_presence(request: Request, *, shown_presence: ShownPresence) -> dict[str, Any]:
    """Give the presence of a user."""
    user_id = request.params["user_id"]
    if not is_user_id(user_id):
        raise invalid_param("That is not a user ID")
    return await shown_presence.status(request.user.user_id, user_id)


ROUTES = [
    Route(
        "PUT",
        V3("/presence/{user_id}/status"),
        set_presence,
        placed_by=PLACED_BY_USER,
        limit="rc_presence.per_user",
    ),
    Route("GET", V3("/presence/{user_id}/status"), get_presence),
]
