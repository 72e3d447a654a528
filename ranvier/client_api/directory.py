"""The published room directory."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ranvier.config.rooms import RoomsConfig
from ranvier.http.authentication import missing_token
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.directory import MAX_PAGE, Directory
from ranvier.spec.errors import not_found
from ranvier.spec.ids import check_server_name

V3 = versions("v3", "r0")
_NOTHING = b'{"chunk":[],"total_room_count_estimate":0}'


class VisibilityBody(msgspec.Struct):
    """The body of a change of a room's visibility in the directory."""

    visibility: Literal["public", "private"] = "public"


class DirectoryFilter(msgspec.Struct):
    """Which rooms are wanted."""

    generic_search_term: str | None = None
    room_types: list[str | None] | None = None


class DirectoryQuery(msgspec.Struct):
    """The body of POST /publicRooms."""

    limit: int | None = None
    since: str | None = None
    filter: DirectoryFilter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


async def get_visibility(request: Request, *, directory: Directory) -> dict[str, Any]:
    """Tell whether a room is published."""
    published = await directory.is_published(request.params["room_id"])
    return {"visibility": "public" if published else "private"}


async def put_visibility(request: Request, *, directory: Directory) -> bytes:
    """Publish a room, or no longer."""
    body = request.json(VisibilityBody, allow_empty=True)
    await directory.set_published(request.user, request.params["room_id"], body.visibility == "public")
    return b"{}"


async def get_public_rooms(
    request: Request, *, directory: Directory, rooms_config: RoomsConfig, server_name: str
) -> bytes:
    """List the published rooms."""
    if request.requester_or_none is None and not rooms_config.allow_public_rooms_without_auth:
        raise missing_token()
    limit = request.int_param("limit", None)
    query = DirectoryQuery(limit=limit, since=request.str_param("since", None))
    return await _list(request, query, directory, rooms_config, server_name)


async def post_public_rooms(
    request: Request, *, directory: Directory, rooms_config: RoomsConfig, server_name: str
) -> bytes:
    """List those of the published rooms that a filter wants."""
    query = request.json(DirectoryQuery, allow_empty=True)
    return await _list(request, query, directory, rooms_config, server_name)


async def _list(
    request: Request, query: DirectoryQuery, directory: Directory, config: RoomsConfig, server_name: str
) -> bytes:
    server = request.str_param("server", server_name)
    if check_server_name(server) != server_name:
        raise not_found(f"The directory of {server} can not be reached from here")
    # There are no networks of application services here, so no room is on one of them.
    if not config.enable_room_list_search or (
        query.third_party_instance_id and not query.include_all_networks
    ):
        return _NOTHING
    wanted = query.filter or DirectoryFilter()
    return await directory.page(
        since=query.since,
        limit=query.limit or MAX_PAGE,
        term=wanted.generic_search_term,
        room_types=wanted.room_types,
    )


ROUTES = [
    Route("GET", V3("/directory/list/room/{room_id}"), get_visibility, auth=Auth.NONE),
    Route("PUT", V3("/directory/list/room/{room_id}"), put_visibility),
    Route("GET", V3("/publicRooms"), get_public_rooms, auth=Auth.OPTIONAL),
    Route("POST", V3("/publicRooms"), post_public_rooms, auth=Auth.GUEST),
]
