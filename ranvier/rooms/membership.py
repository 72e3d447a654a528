"""Membership: joining, inviting, knocking, leaving, kicking, banning, by what the room's rules allow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from ranvier.rooms.actor import Actor, InvitesBlocked, Limit, ProfileOf
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft, Txn
from ranvier.rooms.forget import ForgottenRooms
from ranvier.rooms.joining import accept_third_party_invite, authorising_user
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.stripped_state import stripped_state
from ranvier.spec.errors import AuthError, MatrixError, bad_json, forbidden, not_found
from ranvier.spec.ids import check_room_id, check_user_id, domain_of
from ranvier.wire.log_rows import EventRow

logger = logging.getLogger(__name__)

Action = Literal["join", "knock", "invite", "leave", "kick", "ban", "unban"]
_MEMBERSHIP_OF: Final[Mapping[Action, str]] = {
    "join": "join",
    "knock": "knock",
    "invite": "invite",
    "leave": "leave",
    "kick": "leave",
    "ban": "ban",
    "unban": "leave",
}
_LEAVING_AT_ONCE: Final = 20


class Membership:
    """Change who is what in rooms, for users of this server.

    ``limit`` counts against the limits ``rc_joins…`` and ``rc_invites…``. With ``forget_on_leave`` a room
    that a user leaves is forgotten too. ``block_invites`` leaves inviting to administrators.
    """

    def __init__(
        self,
        *,
        server_name: str,
        rooms: Rooms,
        writer: RoomWriter,
        memberships: Memberships,
        forgotten: ForgottenRooms,
        profile_of: ProfileOf,
        invites_blocked: InvitesBlocked,
        limit: Limit,
        forget_on_leave: bool = False,
        block_invites: bool = False,
    ) -> None:
        self._server_name = server_name
        self._rooms = rooms
        self._writer = writer
        self._memberships = memberships
        self._forgotten = forgotten
        self._profile_of = profile_of
        self._invites_blocked = invites_blocked
        self._limit = limit
        self._forget_on_leave = forget_on_leave
        self._block_invites = block_invites

    async def change(
        self,
        actor: Actor,
        room_id: str,
        target: str,
        action: Action,
        *,
        reason: str | None = None,
        content: Mapping[str, Any] | None = None,
        third_party_signed: Mapping[str, Any] | None = None,
        txn: Txn | None = None,
    ) -> str:
        """Change the membership of ``target`` and give the id of the member event in force.

        ``content`` holds further keys of the event (``is_direct``; for a join also a name and a picture for
        this room alone). What is already so is left as it is.
        Raises 400 ``M_INVALID_PARAM`` for what is no id, 404 ``M_NOT_FOUND`` where one can not come into an
        unknown room, 403 ``M_FORBIDDEN``, ``M_BAD_STATE``, ``M_INVITE_BLOCKED``,
        ``M_GUEST_ACCESS_FORBIDDEN`` or ``M_USER_SUSPENDED``, 429 ``M_LIMIT_EXCEEDED``; AlreadySent when
        ``txn`` was used before.
        """
        check_room_id(room_id)
        check_user_id(target)
        if action == "kick" and target == actor.user_id:
            action = "leave"
        if action != "leave":
            actor.require_unsuspended()
        room = await self._rooms.find(room_id)
        if room is None:
            # Who wants in is told that it is not there; to all others it is a room that they are not in.
            if action in ("join", "knock"):
                raise not_found("This server does not know that room")
            raise forbidden("You are not in that room")
        current = room.membership_of(target)
        full = {**(content or {}), "membership": _MEMBERSHIP_OF[action]}
        if reason is not None:
            full["reason"] = reason
        change: Callable[[Draft], EventRow]
        if action == "join":
            change = await self._joining(actor, room_id, current, full, content, third_party_signed)
        elif action == "knock":
            change = await self._knocking(actor, full)
        elif action == "invite":
            change = await self._inviting(actor, room_id, current, target, full)
        else:
            change = _removing(actor.user_id, target, action, full)
        row = await self._writer.write(room_id, change, txn)
        if _MEMBERSHIP_OF[action] in ("leave", "ban"):
            await self._forget_left(target, room_id)
        return row.event_id

    async def _forget_left(self, user_id: str, room_id: str) -> None:
        """Forget a room that a user of ours left or was put out of, where the configuration says so."""
        if not self._forget_on_leave or domain_of(user_id) != self._server_name:
            return
        try:
            await self._forgotten.forget(user_id, room_id)
        except MatrixError as error:
            if error.status != 400:
                raise
            # They came back meanwhile.

    async def set_state(
        self, actor: Actor, room_id: str, target: str, content: Mapping[str, Any], txn: Txn | None = None
    ) -> str:
        """Do what a member event sent as room state means, and give its id.

        Raises what ``change`` raises, and 400 ``M_BAD_JSON`` for a content without a membership.
        """
        membership = content.get("membership")
        action: Action
        if membership == "leave" and target != actor.user_id:
            room = await self._rooms.get(room_id)
            action = "unban" if room.membership_of(target) == "ban" else "kick"
        elif membership in ("join", "knock", "invite", "leave", "ban"):
            action = membership
        else:
            raise bad_json("membership must be one of join, knock, invite, leave, ban")
        if action in ("join", "knock") and target != actor.user_id:
            raise forbidden(f"Nobody can {action} in another's name")
        return await self.change(actor, room_id, target, action, content=content, txn=txn)

    async def leave_all(self, user_id: str) -> None:
        """Let a user leave every room, and reject every invitation and knock (for a deactivated account).

        A room that can not be left is logged and does not keep the others. Raises 429 and 503 where trying
        again later may help, when all others are left.
        """
        rooms = [
            m.room_id
            for m in (await self._memberships.of(user_id)).values()
            if m.membership in ("join", "invite", "knock")
        ]
        slots = asyncio.Semaphore(_LEAVING_AT_ONCE)
        later: list[MatrixError] = []

        async def leave(room_id: str) -> None:
            async with slots:
                try:
                    await self._writer.write(
                        room_id, _removing(user_id, user_id, "leave", {"membership": "leave"})
                    )
                    await self._forget_left(user_id, room_id)
                except MatrixError as error:
                    logger.warning("%s could not leave %s: %s", user_id, room_id, error)
                    if error.status in (429, 503):
                        later.append(error)

        async with asyncio.TaskGroup() as tasks:
            for room_id in rooms:
                tasks.create_task(leave(room_id))
        if later:
            raise later[0]

    async def check_invite(self, actor: Actor, target: str, room_id: str | None = None) -> None:
        """Check what is not a matter of the room: may ``actor`` invite ``target`` at all?

        Raises 403 ``M_FORBIDDEN`` and ``M_INVITE_BLOCKED``, and counts (429) against ``rc_invites``.
        """
        if self._block_invites and not actor.is_admin:
            raise forbidden("Only administrators may invite on this server")
        if domain_of(target) != self._server_name:
            raise forbidden(f"{target} is on another server, and this one does not talk to others")
        if await self._invites_blocked(target):
            raise MatrixError("M_INVITE_BLOCKED", 403, f"{target} does not take invitations")
        if actor.rate_limited:
            if room_id is not None:
                self._limit("rc_invites.per_room", room_id)
            self._limit("rc_invites.per_user", target)
            self._limit("rc_invites.per_issuer", actor.user_id)

    async def profile(self, user_id: str) -> dict[str, Any]:
        """Give the keys of a member event that come from a user's profile."""
        if domain_of(user_id) != self._server_name:
            return {}
        profile = await self._profile_of(user_id)
        return {
            key: value for key in ("displayname", "avatar_url") if (value := profile.get(key)) is not None
        }

    # -- what is prepared before the room's queue ----------------------------------------------------

    async def _joining(
        self,
        actor: Actor,
        room_id: str,
        current: str | None,
        full: dict[str, Any],
        content: Mapping[str, Any] | None,
        signed: Mapping[str, Any] | None,
    ) -> Callable[[Draft], EventRow]:
        user_id = actor.user_id
        if current != "join" and actor.rate_limited:
            self._limit("rc_joins.local", user_id)
            self._limit("rc_joins_per_room", room_id)
        full = {**await self.profile(user_id), **full}
        # "When copying the membership event's content it is encouraged to exclude this field"
        full.pop("join_authorised_via_users_server", None)
        memberships = (await self._memberships.of(user_id)).values()
        in_rooms = {m.room_id for m in memberships if m.membership == "join"}

        def change(draft: Draft) -> EventRow:
            if draft.membership_of(user_id) == "join" and content is None:
                return _member(draft, user_id)  # joining again changes nothing
            if actor.is_guest:
                _check_guest(draft)
            if signed is not None and draft.membership_of(user_id) not in ("invite", "join"):
                accept_third_party_invite(draft, user_id, signed)
            vouching = authorising_user(draft, user_id, in_rooms=in_rooms, server_name=self._server_name)
            own = full if vouching is None else {**full, "join_authorised_via_users_server": vouching}
            return draft.add(sender=user_id, type=MEMBER, state_key=user_id, content=own)

        return change

    async def _knocking(self, actor: Actor, full: dict[str, Any]) -> Callable[[Draft], EventRow]:
        user_id = actor.user_id
        if actor.rate_limited:
            self._limit("rc_joins.local", user_id)
        full = {**await self.profile(user_id), **full}

        def change(draft: Draft) -> EventRow:
            unsigned = {"knock_room_state": stripped_state(draft.state)}
            return draft.add(sender=user_id, type=MEMBER, state_key=user_id, content=full, unsigned=unsigned)

        return change

    async def _inviting(
        self, actor: Actor, room_id: str, current: str | None, target: str, full: dict[str, Any]
    ) -> Callable[[Draft], EventRow]:
        if current != "invite":
            await self.check_invite(actor, target, room_id)
        full = {**await self.profile(target), **full}

        def change(draft: Draft) -> EventRow:
            if draft.membership_of(actor.user_id) == "join" and draft.membership_of(target) == "invite":
                return _member(draft, target)  # "… or was already invited to the room"
            return add_invite(draft, actor.user_id, target, full)

        return change


def add_invite(draft: Draft, sender: str, target: str, content: dict[str, Any]) -> EventRow:
    """Add an invitation, with the stripped state that its receiver is to see. Raises AuthError (403)."""
    inviter = draft.state.row((MEMBER, sender))
    state = stripped_state(draft.state, *([inviter] if inviter is not None else []))
    return draft.add(
        sender=sender,
        type=MEMBER,
        state_key=target,
        content=content,
        unsigned={"invite_room_state": state},
    )


def _removing(
    sender: str, target: str, action: Action, content: dict[str, Any]
) -> Callable[[Draft], EventRow]:
    """Leave, kick, ban or unban, by what ``target`` is when the change takes place."""

    def change(draft: Draft) -> EventRow:
        current = draft.membership_of(target)
        if action == "leave" and current == "leave":
            return _member(draft, target)
        if action == "kick" and current not in ("join", "invite", "knock"):
            if current == "ban":
                raise MatrixError("M_BAD_STATE", 403, f"{target} is banned: unban them instead")
            raise AuthError(f"{target} is not in the room")
        if action == "unban" and current != "ban":
            raise MatrixError("M_BAD_STATE", 403, f"{target} is not banned")
        return draft.add(sender=sender, type=MEMBER, state_key=target, content=content)

    return change


def _check_guest(draft: Draft) -> None:
    # "Servers MUST only allow guest users to join rooms if the m.room.guest_access state event is present on
    # the room, and has the guest_access value can_join."
    row = draft.state.row(("m.room.guest_access", ""))
    if row is None or row.content.get("guest_access") != "can_join":
        raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not join this room")


def _member(draft: Draft, user_id: str) -> EventRow:
    row = draft.state.row((MEMBER, user_id))
    assert row is not None
    return row
