"""Typing notifications."""

from __future__ import annotations

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import Route, versions
from ranvier.spec.errors import forbidden
from ranvier.users.typing import TypingUsers

V3 = versions("v3", "r0")

_DEFAULT_TIMEOUT_MS = 30_000


class Typing(msgspec.Struct, frozen=True):
    """Body of ``PUT …/typing/{user_id}``; ``timeout`` in milliseconds."""

    typing: bool
    timeout: int = _DEFAULT_TIMEOUT_MS


async def set_typing(request: Request, *, typing_users: TypingUsers) -> bytes:
    """Note that the user types, or does not type any more."""
    body = request.json(Typing)
    user_id = request.user.user_id
    if request.params["user_id"] != user_id:
        raise forbidden("You can only say of yourself that you are typing")
    request.user.require_unsuspended()
    await typing_users.set(user_id, request.params["room_id"], body.typing, body.timeout)
    return b"{}"


ROUTES = [Route("PUT", V3("/rooms/{room_id}/typing/{user_id}"), set_typing, placed_by="room_id")]
