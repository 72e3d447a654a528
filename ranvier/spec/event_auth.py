"""The authorisation rules: may this event happen in a room in this state?

Load the state first (``auth_event_keys`` says which), then call ``check_auth``.
Source: the page of each room version, "Authorisation rules"; server-server API, "Auth events
selection". Numbers of rules below are those of room version 12.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

from ranvier.spec.errors import AuthError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth_member import check_membership, is_joined
from ranvier.spec.ids import is_user_id
from ranvier.spec.power_levels import LEVEL_PROPERTIES, PowerLevels, creators_of, parse_level
from ranvier.spec.room_versions import ROOM_VERSIONS, RoomVersion

CREATE_KEY: Final[StateKey] = ("m.room.create", "")
POWER_LEVELS_KEY: Final[StateKey] = ("m.room.power_levels", "")
JOIN_RULES_KEY: Final[StateKey] = ("m.room.join_rules", "")

_Levels = dict[tuple[str, str], int]
"""Each level that a power-levels event states, by the property that it is in ("" at the top) and name."""


def auth_event_keys(
    version: RoomVersion,
    *,
    type: str,
    sender: str,
    state_key: str | None,
    content: Mapping[str, Any],
) -> list[StateKey]:
    """List the state, each key once, that an event of this shape must cite where the room has it.

    The create event is not among them in room version 12, yet ``check_auth`` needs it in its state.
    Source: server-server API, "Auth events selection".
    """
    # "The auth_events for the m.room.create event in a room is empty"
    if type == "m.room.create":
        return []
    sender_key = ("m.room.member", sender)
    # "Depending on the room version, the m.room.create event. The current m.room.power_levels event,
    # if any. The sender's current m.room.member event, if any."
    keys = [POWER_LEVELS_KEY, sender_key]
    if not version.room_id_is_create_hash:
        keys.insert(0, CREATE_KEY)
    if type == "m.room.member" and state_key is not None:
        for key in _member_auth_keys(version, state_key, content):
            if key not in keys:
                keys.append(key)
    return keys


def _member_auth_keys(version: RoomVersion, target: str, content: Mapping[str, Any]) -> list[StateKey]:
    membership = content.get("membership")
    # "The target's current m.room.member event, if any."
    keys = [("m.room.member", target)]
    # "If membership is join, invite or knock, the current m.room.join_rules event, if any."
    if membership in ("join", "invite", "knock"):
        keys.append(JOIN_RULES_KEY)
    # "If membership is invite and content contains a third_party_invite property, the current
    # m.room.third_party_invite event with state_key matching content.third_party_invite.signed.token"
    if membership == "invite":
        third_party = content.get("third_party_invite")
        signed = third_party.get("signed") if isinstance(third_party, dict) else None
        token = signed.get("token") if isinstance(signed, dict) else None
        if isinstance(token, str):
            keys.append(("m.room.third_party_invite", token))
    # "If membership is join, content.join_authorised_via_users_server is present, and the room version
    # supports restricted rooms, then the m.room.member event with that state_key"
    if membership == "join" and version.restricted_joins:
        authorising = content.get("join_authorised_via_users_server")
        if isinstance(authorising, str):
            keys.append(("m.room.member", authorising))
    return keys


def check_state_independent(
    event: Event,
    auth_events: Sequence[Event],
    *,
    rejected: Container[str] = (),
    create_event: Event | None = None,
) -> None:
    """Check what a received event says about its own authorisation, whatever the room's state is.

    ``auth_events`` are the events that it cites, one for each entry; ``rejected`` holds the ids of
    those that were rejected; ``create_event`` is the room's accepted create event, needed where the
    room id is made from it (version 12). That the signatures are genuine is checked before, see
    ``spec.signatures``; that the right servers' are there is checked here. Raise ``AuthError``.
    """
    if event.type == "m.room.create":
        _check_create(event)
        # "The auth_events for the m.room.create event in a room is empty"
        if auth_events:
            raise AuthError("The create event cites other events")
        return
    # 2. If the event's room_id is not an event ID for an accepted m.room.create event, with the sigil
    #    ! instead of $, reject.
    if event.version.room_id_is_create_hash and (
        create_event is None
        or create_event.event_id in rejected
        or event.room_id != "!" + create_event.event_id[1:]
    ):
        raise AuthError("The room id is not the id of an accepted create event")
    _check_auth_events(event, auth_events, rejected)
    _check_authorising_signature(event)


def _check_auth_events(event: Event, auth_events: Sequence[Event], rejected: Container[str]) -> None:
    expected = auth_event_keys(
        event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
    seen: set[StateKey] = set()
    for cited in auth_events:
        # 3.2. If there are entries whose type and state_key don't match those specified by the auth
        #      events selection algorithm, reject.
        if cited.state_key is None or cited.key not in expected:
            raise AuthError(f"The event cites {cited.event_id}, which does not bear on it")
        # 3.1. If there are duplicate entries for a given type and state_key pair, reject.
        if cited.key in seen:
            raise AuthError(f"The event cites {cited.type} twice for state key {cited.state_key!r}")
        seen.add(cited.key)
        # 3.3. If there are entries which were themselves rejected, reject.
        if cited.event_id in rejected:
            raise AuthError(f"The event cites {cited.event_id}, which was rejected")
        # 3.5. If any event in auth_events has a room_id which does not match that of the event, reject.
        if cited.room_id != event.room_id:
            raise AuthError(f"The event cites {cited.event_id}, which is in another room")
    # 3.4 (versions 1 to 11). If there is no m.room.create event among the entries, reject.
    if not event.version.room_id_is_create_hash and CREATE_KEY not in seen:
        raise AuthError("The event does not cite the room's create event")


def _check_authorising_signature(event: Event) -> None:
    # 5.2. If content has a join_authorised_via_users_server key: if the event is not validly signed by
    #      the homeserver of the user ID denoted by the key, reject.
    if (
        event.type != "m.room.member"
        or not event.version.restricted_joins
        or "join_authorised_via_users_server" not in event.content
    ):
        return
    authorising = event.content["join_authorised_via_users_server"]
    if not is_user_id(authorising):
        raise AuthError("join_authorised_via_users_server is not a user id")
    signatures = event.pdu.get("signatures")
    if not isinstance(signatures, dict) or not signatures.get(_domain(authorising)):
        raise AuthError("The join is not signed by the server that authorised it")


def check_auth(
    event: Event, state: Mapping[StateKey, Event], power_levels: PowerLevels | None = None
) -> None:
    """Check an event against a state of its room; return if it is allowed, raise ``AuthError`` if not.

    ``state`` holds at least what the room has under ``auth_event_keys`` of the event, and the create
    event in every room version. ``power_levels`` is the view on the power-levels event of that same
    state, if the caller has it at hand; making it is the dearest part of the check of a message.
    """
    # 1. If type is m.room.create
    if event.type == "m.room.create":
        _check_create(event)
        return
    create = state.get(CREATE_KEY)
    if create is None:
        raise AuthError("The room has no create event")
    # 2. If the event's room_id is not that of the create event, reject.
    if event.room_id != create.room_id:
        raise AuthError("The event belongs to another room")
    # 4. If the content of the m.room.create event has the property m.federate set to false, and the
    #    sender domain of the event does not match the sender domain of the create event, reject.
    if create.content.get("m.federate") is False and _domain(event.sender) != _domain(create.sender):
        raise AuthError("This room does not take events from other servers")
    # 4 (versions 1 to 5). If type is m.room.aliases
    if event.type == "m.room.aliases" and event.version.aliases_authorised_by_domain:
        _check_aliases(event)
        return
    levels = power_levels if power_levels is not None else PowerLevels.of(state.get(POWER_LEVELS_KEY), create)
    # 5. If type is m.room.member
    if event.type == "m.room.member":
        check_membership(event, state, create, levels)
    else:
        _check_sent_by_member(event, state, create, levels)


def _check_create(event: Event) -> None:
    version = event.version
    # 1.1. If it has any prev_events, reject.
    if event.pdu["prev_events"]:
        raise AuthError("The create event is not the first event of the room")
    if version.room_id_is_create_hash:
        # 1.2. If the event has a room_id, reject.
        if "room_id" in event.pdu:
            raise AuthError("The create event has a room id")
    # 1.2 (versions 1 to 11). If the domain of the room_id does not match the domain of the sender, reject.
    elif _domain(event.room_id) != _domain(event.sender):
        raise AuthError("The room id is not of the server that created the room")
    # 1.3. If content.room_version is present and is not a recognised version, reject.
    if "room_version" in event.content:
        identifier = event.content["room_version"]
        if not isinstance(identifier, str) or identifier not in ROOM_VERSIONS:
            raise AuthError("The room version is not known")
    # 1.4 (versions 1 to 10). If content has no creator property, reject.
    if version.creator_in_content and "creator" not in event.content:
        raise AuthError("The create event does not say who created the room")
    # 1.4. If additional_creators is present in content and is not an array of strings where each string
    #      passes the same user ID validation applied to sender, reject.
    if version.privileged_creators and "additional_creators" in event.content:
        additional = event.content["additional_creators"]
        if not isinstance(additional, list) or not all(is_user_id(user) for user in additional):
            raise AuthError("additional_creators is not a list of user ids")


def _check_aliases(event: Event) -> None:
    # 4.1. If event has no state_key, reject.
    # 4.2. If sender's domain doesn't match state_key, reject.
    if event.state_key is None or _domain(event.sender) != event.state_key:
        raise AuthError("Only a server's own users may list its aliases")


def _check_sent_by_member(
    event: Event, state: Mapping[StateKey, Event], create: Event, levels: PowerLevels
) -> None:
    sender, state_key = event.sender, event.state_key
    # 6. If the sender's current membership state is not join, reject.
    if not is_joined(state, sender):
        raise AuthError(f"{sender} is not in the room")
    sender_level = levels.user_level(sender)
    # 7. If type is m.room.third_party_invite: allow if and only if sender's current power level is
    #    greater than or equal to the invite level.
    if event.type == "m.room.third_party_invite":
        if sender_level < levels.invite:
            raise AuthError(f"Inviting needs power level {levels.invite}, {sender} has {sender_level}")
        return
    # 8. If the event type's required power level is greater than the sender's power level, reject.
    required = levels.event_level(event.type, state_key is not None)
    if required > sender_level:
        raise AuthError(f"Sending {event.type} needs power level {required}, {sender} has {sender_level}")
    # 9. If the event has a state_key that starts with an @ and does not match the sender, reject.
    if state_key is not None and state_key.startswith("@") and state_key != sender:
        raise AuthError("A state key that is a user id must be the sender's")
    # 10. If type is m.room.power_levels
    if event.type == "m.room.power_levels":
        _check_power_levels(event, state.get(POWER_LEVELS_KEY), create, sender_level)
    # 11 (versions 1 and 2). If type is m.room.redaction
    elif event.type == "m.room.redaction" and event.version.redaction_needs_same_domain:
        _check_redaction(event, levels, sender_level)


def _check_redaction(event: Event, levels: PowerLevels, sender_level: int) -> None:
    # 11.1. If the sender's power level is greater than or equal to the redact level, allow.
    if sender_level >= levels.redact:
        return
    # 11.2. If the domain of the event_id of the event being redacted is the same as the domain of the
    #       event_id of the m.room.redaction, allow.
    target = event.redacts
    if target is None or _domain(target) != _domain(event.event_id):
        raise AuthError(f"Redacting others' events needs power level {levels.redact}")


def _domain(identifier: str) -> str:
    """Give what follows the first colon, "" if there is none: an odd id is refused, not an error."""
    return identifier.partition(":")[2]


def _check_power_levels(event: Event, current: Event | None, create: Event, sender_level: int) -> None:
    proposed = _stated_levels(event)
    # 10.4. If the users property in content contains one of the room's creators, reject.
    if event.version.privileged_creators:
        for creator in creators_of(create):
            if ("users", creator) in proposed:
                raise AuthError(f"{creator} created the room and has no stated power level")
    # 10.5. If there is no previous m.room.power_levels event in the room, allow.
    if current is None:
        return
    previous = _readable_levels(current)
    for place in previous.keys() | proposed.keys():
        old, new = previous.get(place), proposed.get(place)
        if old != new:
            _check_level_change(event.sender, sender_level, place, old, new)


def _check_level_change(
    sender: str, sender_level: int, place: tuple[str, str], old: int | None, new: int | None
) -> None:
    scope, name = place
    if old is not None:
        # 10.6.1, 10.7.1. If the current value is higher than the sender's current power level, reject.
        # 10.9.1. For users other than the sender: if it is greater than or equal, reject.
        others_level = scope == "users" and name != sender
        if old > sender_level or (others_level and old == sender_level):
            raise AuthError(f"The power level of {name} is {old} and {sender} has only {sender_level}")
    # 10.6.2, 10.8.1, 10.10.1. If the new value is greater than the sender's current power level, reject.
    if new is not None and new > sender_level:
        raise AuthError(f"{sender} has power level {sender_level} and cannot give {new} to {name}")


def _level_maps(version: RoomVersion) -> tuple[str, ...]:
    # "notifications" is checked like "events" since room version 6
    return ("events", "notifications") if version.limit_notifications_levels else ("events",)


def _stated_levels(event: Event) -> _Levels:
    """Read every level that a new power-levels event states, or raise ``AuthError`` if one is none."""
    version, content = event.version, event.content
    levels: _Levels = {}
    # 10.1. If any of users_default, events_default, … are present and not an integer, reject.
    # Room versions before 10 have no such rule. A value there that is not even a text for an integer can
    # be compared with nothing, so it is refused as well ("… cause the powerlevel event to be rejected").
    for name in LEVEL_PROPERTIES:
        if name in content:
            levels["", name] = _level_or_reject(content[name], name, version)
    # 10.2. If either of the properties events or notifications are present and not an object with values
    #       that are integers, reject.
    for scope in _level_maps(version):
        entries = content.get(scope)
        if isinstance(entries, dict):
            for name, value in entries.items():
                levels[scope, name] = _level_or_reject(value, name, version)
        elif scope in content and version.integer_power_levels:
            raise AuthError(f"{scope} is not an object of power levels")
    # 10.3. If the users property in content is not an object with keys that are valid user IDs with
    #       values that are integers, reject.
    users = content.get("users", {})
    if not isinstance(users, dict):
        raise AuthError("users is not an object of power levels")
    for user, value in users.items():
        if not is_user_id(user):
            raise AuthError(f"{user!r} in users is not a user id")
        levels["users", user] = _level_or_reject(value, user, version)
    return levels


def _level_or_reject(value: object, name: str, version: RoomVersion) -> int:
    level = parse_level(value, version)
    if level is None:
        raise AuthError(f"The power level of {name} is not an integer")
    return level


def _readable_levels(event: Event) -> _Levels:
    """Read the levels of a power-levels event that was accepted; what cannot be read counts as absent."""
    version, content = event.version, event.content
    levels: _Levels = {}
    for name in LEVEL_PROPERTIES:
        if (level := parse_level(content.get(name), version)) is not None:
            levels["", name] = level
    for scope in ("users", *_level_maps(version)):
        entries = content.get(scope)
        if isinstance(entries, dict):
            for name, value in entries.items():
                if (level := parse_level(value, version)) is not None:
                    levels[scope, name] = level
    return levels
