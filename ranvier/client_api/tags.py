"""Tags on rooms."""

from __future__ import annotations

from typing import Any

from ranvier.client_api.account_data import own_user
from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Route, versions
from ranvier.users.tags import Tags

V3 = versions("v3", "r0")


async def get_tags(request: Request, *, tags: Tags) -> dict[str, Any]:
    """List the tags on a room."""
    return {"tags": await tags.of_room(own_user(request), request.params["room_id"])}


async def put_tag(request: Request, *, tags: Tags) -> dict[str, Any]:
    """Put a tag on a room."""
    content = request.json_object(allow_empty=True)
    await tags.put(own_user(request), request.params["room_id"], request.params["tag"], content)
    return {}


async def delete_tag(request: Request, *, tags: Tags) -> dict[str, Any]:
    """Take a tag from a room."""
    await tags.remove(own_user(request), request.params["room_id"], request.params["tag"])
    return {}


_TAGS = V3("/user/{user_id}/rooms/{room_id}/tags")
_TAG = V3("/user/{user_id}/rooms/{room_id}/tags/{tag}")

ROUTES = [
    Route("GET", _TAGS, get_tags, placed_by=PLACED_BY_USER),
    Route("PUT", _TAG, put_tag, placed_by=PLACED_BY_USER),
    Route("DELETE", _TAG, delete_tag, placed_by=PLACED_BY_USER),
]
