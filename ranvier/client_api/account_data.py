"""Account data: what clients keep for their user, global and by room."""

from __future__ import annotations

from typing import Any

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Route, versions
from ranvier.spec.errors import forbidden
from ranvier.users.account_data import PUSH_RULES_TYPE, AccountData
from ranvier.users.push_rules import PushRules, rules_content

V3 = versions("v3", "r0")


def own_user(request: Request) -> str:
    """Give the ``user_id`` of the path, which must be that of who asks (403 ``M_FORBIDDEN``)."""
    user_id = request.user.user_id
    if request.params["user_id"] != user_id:
        raise forbidden("This belongs to another user")
    return user_id


async def get_account_data(request: Request, *, account_data: AccountData, push_rules: PushRules) -> bytes:
    """Give global account data."""
    user_id = own_user(request)
    # "Servers must allow clients to read the above event types as normal."
    if request.params["type"] == PUSH_RULES_TYPE:
        return rules_content((await push_rules.of(user_id)).rules, user_id)
    return await account_data.get(user_id, request.params["type"])


async def put_account_data(request: Request, *, account_data: AccountData) -> dict[str, Any]:
    """Set global account data."""
    await account_data.set(own_user(request), request.params["type"], request.json_object())
    return {}


async def get_room_account_data(request: Request, *, account_data: AccountData) -> bytes:
    """Give account data of a room."""
    return await account_data.get(own_user(request), request.params["type"], request.params["room_id"])


async def put_room_account_data(request: Request, *, account_data: AccountData) -> dict[str, Any]:
    """Set account data of a room."""
    content = request.json_object()
    await account_data.set(own_user(request), request.params["type"], content, request.params["room_id"])
    return {}


_GLOBAL = V3("/user/{user_id}/account_data/{type}")
_ROOM = V3("/user/{user_id}/rooms/{room_id}/account_data/{type}")

ROUTES = [
    Route("GET", _GLOBAL, get_account_data, placed_by=PLACED_BY_USER),
    Route("PUT", _GLOBAL, put_account_data, placed_by=PLACED_BY_USER),
    Route("GET", _ROOM, get_room_account_data, placed_by=PLACED_BY_USER),
    Route("PUT", _ROOM, put_room_account_data, placed_by=PLACED_BY_USER),
]
