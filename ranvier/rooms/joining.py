"""Joining under a room's join rules: which room lets a user in, and who of ours vouches for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from ranvier.rooms.draft import Draft
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import AuthError
from ranvier.spec.event_auth import JOIN_RULES_KEY
from ranvier.spec.ids import domain_of
from ranvier.spec.room_versions import RoomVersion

MAX_ALLOW_RULES: Final = 500


def is_restricted(version: RoomVersion, join_rule: object) -> bool:
    """Tell whether members of other rooms may join. Source: room versions 8 and 10, "Join rules"."""
    return (version.restricted_joins and join_rule == "restricted") or (
        version.knock_restricted_joins and join_rule == "knock_restricted"
    )


def allowed_rooms(join_rules: Mapping[str, Any]) -> list[str]:
    """Give the rooms whose members a restricted room lets in.

    Source: client-server API, "Restricted rooms": conditions of another type, and those that are not
    well formed, are never met.
    """
    allow = join_rules.get("allow")
    if not isinstance(allow, list):
        return []
    rooms = [
        rule.get("room_id")
        for rule in allow[:MAX_ALLOW_RULES]
        if isinstance(rule, dict) and rule.get("type") == "m.room_membership"
    ]
    return [room_id for room_id in rooms if isinstance(room_id, str)]


def authorising_user(
    draft: Draft, user_id: str, *, in_rooms: Collection[str], server_name: str
) -> str | None:
    """Give the user of ours who must vouch for a join, or None where the room's rules ask for nobody.

    ``in_rooms`` are the rooms that the user is joined to. Raises AuthError (403) when the user is in none of
    the rooms that would let them in, and when no user of ours may invite.
    """
    row = draft.state.row(JOIN_RULES_KEY)
    content = row.content if row is not None else {}
    if not is_restricted(draft.room.version, content.get("join_rule")):
        return None
    if draft.membership_of(user_id) in ("invite", "join"):
        return None
    if not any(room_id in in_rooms for room_id in allowed_rooms(content)):
        raise AuthError("You are neither invited nor a member of a room whose members may join")
    for candidate in _who_may_invite(draft, server_name):
        return candidate
    raise AuthError("Nobody on this server may invite to the room, so nobody can let you in")


def _who_may_invite(draft: Draft, server_name: str) -> Iterator[str]:
    """Give the joined users of ours with the power to invite."""
    levels = draft.power_levels
    named = [*levels.privileged, *levels.users]
    # Everybody may invite only where the default level suffices; that is the only case with many to look at.
    everybody = draft.room.joined if levels.users_default >= levels.invite else ()
    for user_id in (*named, *everybody):
        if (
            ":" in user_id
            and domain_of(user_id) == server_name
            and draft.membership_of(user_id) == "join"
            and levels.user_level(user_id) >= levels.invite
        ):
            yield user_id


def accept_third_party_invite(draft: Draft, user_id: str, signed: Mapping[str, Any]) -> None:
    """Turn a pending third-party invitation into one of ``user_id``, on behalf of who sent it.

    ``signed`` is the identity server's signature (``mxid``, ``token``, ``signatures``). Raises AuthError
    (403) where the room has no such invitation or the signature is wrong.
    Source: client-server API, "Third-party invites".
    """
    token = signed.get("token")
    pending = draft.state.row(("m.room.third_party_invite", token)) if isinstance(token, str) else None
    if pending is None:
        raise AuthError("The room has no such third-party invite")
    if signed.get("sender") != pending.sender:
        raise AuthError("The third-party invite is another user's")
    name = pending.content.get("display_name")
    content = {
        "membership": "invite",
        "third_party_invite": {
            "display_name": name if isinstance(name, str) else "",
            "signed": {key: signed.get(key) for key in ("mxid", "token", "signatures")},
        },
    }
    draft.add(sender=pending.sender, type=MEMBER, state_key=user_id, content=content)
