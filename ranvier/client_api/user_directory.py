"""Searching for users."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import Route, versions
from ranvier.users.user_directory import UserDirectory

MAX_TERM: Final = 1000


class Search(msgspec.Struct, frozen=True):
    """Body of ``POST /user_directory/search``."""

    search_term: Annotated[str, msgspec.Meta(max_length=MAX_TERM)]
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10


async def search_users(request: Request, *, user_directory: UserDirectory) -> dict[str, Any]:
    """Find users by name. Source: client-server API, ``POST /user_directory/search``."""
    body = request.json(Search)
    found = await user_directory.search(request.user.user_id, body.search_term, body.limit)
    return {
        "limited": found.limited,
        "results": [
            {key: value for key, value in user._asdict().items() if value is not None} for user in found.users
        ],
    }


ROUTES = [
    Route("POST", versions("v3", "r0")("/user_directory/search"), search_users, limit="rc_user_directory"),
]
