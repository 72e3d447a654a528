"""Profiles of users."""

from __future__ import annotations

from typing import Any

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.spec.errors import missing_param
from ranvier.spec.ids import check_user_id
from ranvier.users.profiles import Profiles

V3 = versions("v3", "r0")


async def get_profile(request: Request, *, profiles: Profiles) -> dict[str, Any]:
    """Give a whole profile."""
    user_id = check_user_id(request.params["user_id"])
    return dict(await profiles.show(request.requester_or_none, user_id))


async def get_profile_field(request: Request, *, profiles: Profiles) -> dict[str, Any]:
    """Give one field of a profile."""
    user_id, key = check_user_id(request.params["user_id"]), request.params["key"]
    return {key: await profiles.show_field(request.requester_or_none, user_id, key)}


async def put_profile_field(request: Request, *, profiles: Profiles) -> dict[str, Any]:
    """Set one field of a profile."""
    user_id, key = check_user_id(request.params["user_id"]), request.params["key"]
    body = request.json_object()
    if key not in body:
        # "The required keyName property is missing from the request body."
        raise missing_param(f"The body must have {key[:255]!r}, the field that the path names")
    await profiles.put(request.user, user_id, key, body[key])
    return {}


async def delete_profile_field(request: Request, *, profiles: Profiles) -> dict[str, Any]:
    """Take one field out of a profile."""
    user_id, key = check_user_id(request.params["user_id"]), request.params["key"]
    await profiles.remove(request.user, user_id, key)
    return {}


_PROFILE = V3("/profile/{user_id}")
_FIELD = V3("/profile/{user_id}/{key}")
_PROFILE_LIMIT = "rc_profile"

ROUTES = [
    Route("GET", _PROFILE, get_profile, auth=Auth.OPTIONAL, placed_by="user_id", limit=_PROFILE_LIMIT),
    Route("GET", _FIELD, get_profile_field, auth=Auth.OPTIONAL, placed_by="user_id", limit=_PROFILE_LIMIT),
    Route(
        "PUT",
        _FIELD,
        put_profile_field,
        auth=Auth.GUEST,
        placed_by=PLACED_BY_USER,
        limit=_PROFILE_LIMIT,
        max_body=128 * 1024,
    ),
    Route(
        "DELETE",
        _FIELD,
        delete_profile_field,
        auth=Auth.GUEST,
        placed_by=PLACED_BY_USER,
        limit=_PROFILE_LIMIT,
    ),
]
