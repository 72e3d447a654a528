"""Room aliases."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.rooms.aliases import Aliases

V3 = versions("v3", "r0")


class AliasBody(msgspec.Struct):
    """The body of a new alias."""

    room_id: str


async def get_alias(request: Request, *, aliases: Aliases) -> dict[str, Any]:
    """Find the room of an alias."""
    found = await aliases.resolve(request.params["alias"])
    return {"room_id": found.room_id, "servers": found.servers}


async def put_alias(request: Request, *, aliases: Aliases) -> bytes:
    """Make an alias."""
    await aliases.create(request.user, request.params["alias"], request.json(AliasBody).room_id)
    return b"{}"


async def delete_alias(request: Request, *, aliases: Aliases) -> bytes:
    """Remove an alias."""
    await aliases.delete(request.user, request.params["alias"])
    return b"{}"


async def room_aliases(request: Request, *, aliases: Aliases) -> dict[str, Any]:
    """List the aliases of a room."""
    return {"aliases": await aliases.of_room(request.user, request.params["room_id"])}


ROUTES = [
    Route("GET", V3("/directory/room/{alias}"), get_alias, auth=Auth.NONE),
    Route("PUT", V3("/directory/room/{alias}"), put_alias),
    Route("DELETE", V3("/directory/room/{alias}"), delete_alias),
    Route("GET", V3("/rooms/{room_id}/aliases"), room_aliases, auth=Auth.GUEST, placed_by="room_id"),
]
