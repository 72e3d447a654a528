"""Membership: join, knock, invite, leave, forget, kick, ban, unban, and the rooms that a user is in."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.rooms.aliases import Aliases
from ranvier.rooms.forget import ForgottenRooms
from ranvier.rooms.membership import Action, Membership
from ranvier.rooms.memberships import Memberships
from ranvier.spec.errors import MatrixError, bad_json
from ranvier.users.upgraded_rooms import UpgradedRooms

V3 = versions("v3", "r0")


class JoinBody(msgspec.Struct):
    """The body of a join."""

    reason: str | None = None
    third_party_signed: dict[str, Any] | None = None


class ReasonBody(msgspec.Struct):
    """The body of a knock or of leaving."""

    reason: str | None = None


class TargetBody(msgspec.Struct):
    """The body of kicking, banning and unbanning."""

    user_id: str
    reason: str | None = None


class InviteBody(msgspec.Struct):
    """The body of an invitation, by user id or by a third-party id (``medium`` and ``address``)."""

    user_id: str | None = None
    reason: str | None = None
    medium: str | None = None
    address: str | None = None


async def join_room(
    request: Request, *, membership: Membership, aliases: Aliases, upgraded_rooms: UpgradedRooms
) -> dict[str, Any]:
    """Join a room by its id, or by an alias."""
    body = request.json(JoinBody, allow_empty=True)
    room_id = await aliases.room_id_of(request.params["room_id"])
    user = request.user
    is_new = not await upgraded_rooms.is_in(user.user_id, room_id)
    await membership.change(
        user,
        room_id,
        user.user_id,
        "join",
        reason=body.reason,
        third_party_signed=body.third_party_signed,
    )
    if is_new:
        await upgraded_rooms.carry_over(user.user_id, room_id)
    return {"room_id": room_id}


async def knock(request: Request, *, membership: Membership, aliases: Aliases) -> dict[str, Any]:
    """Knock on a room."""
    body = request.json(ReasonBody, allow_empty=True)
    room_id = await aliases.room_id_of(request.params["room_id"])
    await membership.change(request.user, room_id, request.user.user_id, "knock", reason=body.reason)
    return {"room_id": room_id}


async def leave(request: Request, *, membership: Membership) -> bytes:
    """Leave a room, or reject an invitation, or take a knock back."""
    body = request.json(ReasonBody, allow_empty=True)
    user = request.user
    await membership.change(user, request.params["room_id"], user.user_id, "leave", reason=body.reason)
    return b"{}"


async def forget(request: Request, *, forgotten: ForgottenRooms) -> bytes:
    """Forget a room that was left."""
    await forgotten.forget(request.user.user_id, request.params["room_id"])
    return b"{}"


async def invite(request: Request, *, membership: Membership) -> bytes:
    """Invite a user."""
    body = request.json(InviteBody)
    if body.user_id is None:
        if body.medium is None or body.address is None:
            raise bad_json("Missing user_id")
        raise MatrixError(
            "M_SERVER_NOT_TRUSTED", 403, "This server uses no identity server: invite by user ID"
        )
    await membership.change(
        request.user, request.params["room_id"], body.user_id, "invite", reason=body.reason
    )
    return b"{}"


async def kick(request: Request, *, membership: Membership) -> bytes:
    """Remove a user."""
    return await _act_on_target(request, membership, "kick")


async def ban(request: Request, *, membership: Membership) -> bytes:
    """Ban a user."""
    return await _act_on_target(request, membership, "ban")


async def unban(request: Request, *, membership: Membership) -> bytes:
    """Lift a ban."""
    return await _act_on_target(request, membership, "unban")


async def _act_on_target(request: Request, membership: Membership, action: Action) -> bytes:
    body = request.json(TargetBody)
    await membership.change(request.user, request.params["room_id"], body.user_id, action, reason=body.reason)
    return b"{}"


async def joined_rooms(request: Request, *, memberships: Memberships) -> dict[str, Any]:
    """List the rooms that the user is in."""
    return {"joined_rooms": await memberships.joined(request.user.user_id)}


def _room(path: str) -> tuple[str, ...]:
    return V3("/rooms/{room_id}" + path)


ROUTES = [
    Route("POST", V3("/join/{room_id}"), join_room, auth=Auth.GUEST, placed_by="room_id", name="join"),
    Route("POST", _room("/join"), join_room, auth=Auth.GUEST, placed_by="room_id"),
    Route("POST", V3("/knock/{room_id}"), knock, placed_by="room_id"),
    Route("POST", _room("/leave"), leave, auth=Auth.GUEST, placed_by="room_id"),
    Route("POST", _room("/forget"), forget, auth=Auth.GUEST, placed_by="room_id"),
    Route("POST", _room("/invite"), invite, placed_by="room_id"),
    Route("POST", _room("/kick"), kick, placed_by="room_id"),
    Route("POST", _room("/ban"), ban, placed_by="room_id"),
    Route("POST", _room("/unban"), unban, placed_by="room_id"),
    Route("GET", V3("/joined_rooms"), joined_rooms, auth=Auth.GUEST, placed_by=PLACED_BY_USER),
]
