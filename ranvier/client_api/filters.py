"""Uploading and reading filters."""

from __future__ import annotations

from typing import Any

from ranvier.client_api.account_data import own_user
from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.users.filters import Filters

V3 = versions("v3", "r0")


async def post_filter(request: Request, *, filters: Filters) -> dict[str, Any]:
    """Store a filter and give its id."""
    return {"filter_id": await filters.add(own_user(request), request.json_object())}


async def get_filter(request: Request, *, filters: Filters) -> bytes:
    """Give a stored filter."""
    return await filters.definition(own_user(request), request.params["filter_id"])


ROUTES = [
    Route("POST", V3("/user/{user_id}/filter"), post_filter, auth=Auth.GUEST, placed_by=PLACED_BY_USER),
    Route(
        "GET", V3("/user/{user_id}/filter/{filter_id}"), get_filter, auth=Auth.GUEST, placed_by=PLACED_BY_USER
    ),
]
