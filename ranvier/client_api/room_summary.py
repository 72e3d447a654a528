"""What a room is for somebody outside: summaries, spaces, and rooms in common."""

from __future__ import annotations

from typing import Any

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.rooms.aliases import Aliases
from ranvier.rooms.space_hierarchy import SpaceHierarchy
from ranvier.rooms.summary import RoomSummaries

V1 = versions("v1")
UNSTABLE = "/_matrix/client/unstable"


async def room_summary(
    request: Request, *, aliases: Aliases, room_summaries: RoomSummaries
) -> dict[str, Any]:
    """Tell what a room is, by its id or an alias."""
    room_id = await aliases.room_id_of(request.params["room_id"])
    requester = request.requester_or_none
    return await room_summaries.of(room_id, requester.user_id if requester is not None else None)


async def hierarchy(request: Request, *, space_hierarchy: SpaceHierarchy) -> dict[str, Any]:
    """List the rooms under a space."""
    return await space_hierarchy.page(
        request.user.user_id,
        request.params["room_id"],
        suggested_only=request.bool_param("suggested_only"),
        max_depth=request.int_param("max_depth", None),
        limit=request.int_param("limit", None, 1),
        start=request.str_param("from", None),
    )


async def mutual_rooms(request: Request, *, room_summaries: RoomSummaries) -> dict[str, Any]:
    """List the rooms that the user shares with another one."""
    return await room_summaries.mutual(
        # "the user_id parameter was missing, non-compliant, or was the sender's own": M_INVALID_PARAM for all
        request.user.user_id,
        request.str_param("user_id", ""),
        request.str_param("from", None),
    )


_SUMMARY_PATHS = (
    *V1("/room_summary/{room_id}"),
    f"{UNSTABLE}/im.nheko.summary/summary/{{room_id}}",
    f"{UNSTABLE}/im.nheko.summary/rooms/{{room_id}}/summary",
)
_MUTUAL_PATHS = (*V1("/mutual_rooms"), f"{UNSTABLE}/uk.half-shot.msc2666/user/mutual_rooms")

ROUTES = [
    Route("GET", _SUMMARY_PATHS, room_summary, auth=Auth.OPTIONAL),
    Route("GET", V1("/rooms/{room_id}/hierarchy"), hierarchy, auth=Auth.GUEST),
    Route("GET", _MUTUAL_PATHS, mutual_rooms, placed_by=PLACED_BY_USER),
]
