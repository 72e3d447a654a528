"""The authorisation rule for ``m.room.member``: who may join, invite, leave, kick, ban and knock.

Source: the page of each room version, "Authorisation rules". Numbers of rules are those of room
version 12. ``spec.event_auth`` calls this; nothing else need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from ranvier.spec.canonical_json import encode
from ranvier.spec.errors import AuthError, MatrixError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.power_levels import PowerLevels, creators_of
from ranvier.spec.unpadded_base64 import decode_base64

# A third-party invite has one or two keys and one signature. An event has room for hundreds of each, and
# trying every pair would take seconds. NOTSPEC: only so many pairs are tried, in the order of the event.
MAX_SIGNATURE_CHECKS: Final = 64

_TO_STANDARD: Final = str.maketrans("-_", "+/")


def membership_of(state: Mapping[StateKey, Event], user_id: str) -> str | None:
    """Give a user's membership in a state, None where there is none."""
    member = state.get(("m.room.member", user_id))
    if member is None:
        return None
    membership = member.content.get("membership")
    return membership if isinstance(membership, str) else None


def is_joined(state: Mapping[StateKey, Event], user_id: str) -> bool:
    """Tell whether a user is in the room in a state."""
    member = state.get(("m.room.member", user_id))
    return member is not None and member.content.get("membership") == "join"


def check_membership(
    event: Event, state: Mapping[StateKey, Event], create: Event, levels: PowerLevels
) -> None:
    """Check an ``m.room.member`` event against a state of its room; raise ``AuthError`` if it is refused."""
    # 5.1. If there is no state_key property, or no membership property in content, reject.
    target = event.state_key
    membership = event.content.get("membership")
    if target is None or membership is None:
        raise AuthError("The membership event does not say whose membership it is or which")
    if membership == "join":
        _check_join(event, target, state, create, levels)
    elif membership == "invite":
        _check_invite(event, target, state, levels)
    elif membership == "leave":
        _check_leave(event, target, state, levels)
    elif membership == "ban":
        _check_ban(event, target, state, levels)
    elif membership == "knock" and event.version.knocking:
        _check_knock(event, target, state)
    else:
        # 5.8. Otherwise, the membership is unknown. Reject.
        raise AuthError(f"This room knows no membership {membership!r}")


def _join_rule(state: Mapping[StateKey, Event]) -> str:
    rules = state.get(("m.room.join_rules", ""))
    rule = "invite" if rules is None else rules.content.get("join_rule")
    return rule if isinstance(rule, str) else "invite"


def _check_join(
    event: Event, target: str, state: Mapping[StateKey, Event], create: Event, levels: PowerLevels
) -> None:
    # 5.3.1. If the only previous event is an m.room.create and the state_key is the sender of the
    #        m.room.create (versions 1 to 10: the creator), allow.
    creators = (create.sender,) if not event.version.creator_in_content else creators_of(create)
    if target in creators and event.prev_event_ids == [create.event_id]:
        return
    # 5.3.2. If the sender does not match state_key, reject.
    if event.sender != target:
        raise AuthError("Nobody can join in another's name")
    membership = membership_of(state, target)
    # 5.3.3. If the sender is banned, reject.
    if membership == "ban":
        raise AuthError(f"{target} is banned from the room")
    rule = _join_rule(state)
    # 5.3.6. If the join_rule is public, allow.
    if rule == "public":
        return
    version = event.version
    restricted = (version.restricted_joins and rule == "restricted") or (
        version.knock_restricted_joins and rule == "knock_restricted"
    )
    # 5.3.4. If the join_rule is invite or knock then allow if membership state is invite or join.
    # 5.3.5.1. (restricted or knock_restricted) If membership state is join or invite, allow.
    if not (restricted or rule == "invite" or (version.knocking and rule == "knock")):
        # 5.3.7. Otherwise, reject.
        raise AuthError(f"Nobody can join under the join rule {rule!r}")
    if membership in ("invite", "join"):
        return
    if not restricted:
        raise AuthError(f"{target} is not invited to the room")
    # 5.3.5.2. If the join_authorised_via_users_server key in content is not a user with sufficient
    #          permission to invite other users or is not a joined member of the room, reject.
    authorising = event.content.get("join_authorised_via_users_server")
    if (
        not isinstance(authorising, str)
        or not is_joined(state, authorising)
        or levels.user_level(authorising) < levels.invite
    ):
        raise AuthError(f"{target} is not invited, and nobody who may invite authorised the join")


def _check_invite(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> None:
    # 5.4.1. If content has a third_party_invite property
    if "third_party_invite" in event.content:
        _check_third_party_invite(event, target, state)
        return
    # 5.4.2. If the sender's current membership state is not join, reject.
    if not is_joined(state, event.sender):
        raise AuthError(f"{event.sender} is not in the room")
    # 5.4.3. If target user's current membership state is join or ban, reject.
    membership = membership_of(state, target)
    if membership == "join":
        raise AuthError(f"{target} is already in the room")
    if membership == "ban":
        raise AuthError(f"{target} is banned from the room")
    # 5.4.4. If the sender's power level is greater than or equal to the invite level, allow.
    _check_level(event.sender, levels, levels.invite, "Inviting")


def _check_third_party_invite(event: Event, target: str, state: Mapping[StateKey, Event]) -> None:
    # 5.4.1.1. If target user is banned, reject.
    if membership_of(state, target) == "ban":
        raise AuthError(f"{target} is banned from the room")
    # 5.4.1.2. If content.third_party_invite does not have a signed property, reject.
    third_party = event.content["third_party_invite"]
    signed = third_party.get("signed") if isinstance(third_party, dict) else None
    if not isinstance(signed, dict):
        raise AuthError("The third-party invite has nothing signed")
    # 5.4.1.3. If signed does not have mxid and token properties, reject.
    mxid, token = signed.get("mxid"), signed.get("token")
    if not isinstance(mxid, str) or not isinstance(token, str):
        raise AuthError("The third-party invite does not say whom it is for")
    # 5.4.1.4. If mxid does not match state_key, reject.
    if mxid != target:
        raise AuthError(f"The third-party invite is not for {target}")
    # 5.4.1.5. If there is no m.room.third_party_invite event in the current room state with state_key
    #          matching token, reject.
    invite = state.get(("m.room.third_party_invite", token))
    if invite is None:
        raise AuthError("The room has no such third-party invite")
    # 5.4.1.6. If sender does not match sender of the m.room.third_party_invite, reject.
    if event.sender != invite.sender:
        raise AuthError("The third-party invite is another user's")
    # 5.4.1.7. If any signature in signed matches any public key in the m.room.third_party_invite event,
    #          allow. 5.4.1.8. Otherwise, reject.
    if not _any_signature_matches(signed, invite.content):
        raise AuthError("The third-party invite is not signed with one of its keys")


def _any_signature_matches(signed: dict[str, Any], invite_content: Mapping[str, Any]) -> bool:
    unsigned = {name: value for name, value in signed.items() if name not in ("signatures", "unsigned")}
    message = encode(unsigned, keep_floats=True)
    keys = list(_public_keys(invite_content))
    checks = 0
    for signature in _signatures(signed):
        for key in keys:
            if checks == MAX_SIGNATURE_CHECKS:
                return False
            checks += 1
            try:
                key.verify(message, signature)
            except BadSignatureError:
                continue
            return True
    return False


def _signatures(signed: Mapping[str, Any]) -> Iterator[bytes]:
    servers = signed.get("signatures")
    for by_key in servers.values() if isinstance(servers, dict) else ():
        for key_id, text in by_key.items() if isinstance(by_key, dict) else ():
            if key_id.startswith("ed25519:") and (signature := _decoded(text, 64)) is not None:
                yield signature


def _public_keys(content: Mapping[str, Any]) -> Iterator[VerifyKey]:
    # 5.4.1.7.1. A single public key in the public_key property.
    texts = [content.get("public_key")]
    # 5.4.1.7.2. A list of public keys in the public_keys property.
    listed = content.get("public_keys")
    if isinstance(listed, list):
        texts += [entry.get("public_key") for entry in listed if isinstance(entry, dict)]
    for text in texts:
        if (key := _decoded(text, 32)) is not None:
            yield VerifyKey(key)


def _decoded(text: object, length: int) -> bytes | None:
    """Decode unpadded base64 of "the standard or URL-safe alphabets", None if it is not that many bytes."""
    if not isinstance(text, str):
        return None
    try:
        decoded = decode_base64(text.translate(_TO_STANDARD))
    except MatrixError:
        return None
    return decoded if len(decoded) == length else None


def _check_leave(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> None:
    sender = event.sender
    membership = membership_of(state, target)
    # 5.5.1. If the sender matches state_key, allow if and only if that user's current membership state is
    #        invite, join, or (version 7 and later) knock.
    if sender == target:
        if membership in ("invite", "join") or (membership == "knock" and event.version.knocking):
            return
        raise AuthError(f"{target} is not in the room")
    # 5.5.2. If the sender's current membership state is not join, reject.
    if not is_joined(state, sender):
        raise AuthError(f"{sender} is not in the room")
    # 5.5.3. If the target user's current membership state is ban, and the sender's power level is less
    #        than the ban level, reject.
    if membership == "ban":
        _check_level(sender, levels, levels.ban, "Unbanning")
    # 5.5.4. If the sender's power level is greater than or equal to the kick level, and the target user's
    #        power level is less than the sender's power level, allow.
    _check_level(sender, levels, levels.kick, "Removing others")
    _check_outranks(sender, target, levels)


def _check_ban(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> None:
    # 5.6.1. If the sender's current membership state is not join, reject.
    if not is_joined(state, event.sender):
        raise AuthError(f"{event.sender} is not in the room")
    # 5.6.2. If the sender's power level is greater than or equal to the ban level, and the target user's
    #        power level is less than the sender's power level, allow.
    _check_level(event.sender, levels, levels.ban, "Banning")
    _check_outranks(event.sender, target, levels)


def _check_knock(event: Event, target: str, state: Mapping[StateKey, Event]) -> None:
    # 5.7.1. If the join_rule is anything other than knock or (version 10 and later) knock_restricted,
    #        reject.
    rule = _join_rule(state)
    if rule != "knock" and not (rule == "knock_restricted" and event.version.knock_restricted_joins):
        raise AuthError("Nobody can knock on this room")
    # 5.7.2. If sender does not match state_key, reject.
    if event.sender != target:
        raise AuthError("Nobody can knock in another's name")
    # 5.7.3. If the sender's current membership is not ban, invite, or join, allow.
    membership = membership_of(state, target)
    if membership in ("ban", "invite", "join"):
        raise AuthError(f"{target} cannot knock, having the membership {membership!r}")


def _check_level(user_id: str, levels: PowerLevels, required: int, action: str) -> None:
    if (level := levels.user_level(user_id)) < required:
        raise AuthError(f"{action} needs power level {required}, {user_id} has {level}")


def _check_outranks(sender: str, target: str, levels: PowerLevels) -> None:
    if levels.user_level(target) >= levels.user_level(sender):
        raise AuthError(f"The power level of {target} is not below that of {sender}")
