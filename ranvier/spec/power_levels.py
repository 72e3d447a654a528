"""Power levels: who may do what, read from ``m.room.power_levels`` and the room's creators.

Source: client-server API, ``m.room.power_levels``; server-server API, "Definitions" of the checks
on receipt of a PDU; each room version's "Deprecated event content schemas".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ranvier.spec.event import Event
from ranvier.spec.room_versions import RoomVersion

LEVEL_PROPERTIES: Final = (
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "redact",
    "kick",
    "invite",
)
"""The properties of ``m.room.power_levels`` that are one level each."""

_NO_LEVELS: Final[Mapping[str, Any]] = {}

# "a single base 10 integer, optionally with any number of leading zeroes, optionally prefixed with a
# single - or +". The count of digits is what Python converts by default, so that int() cannot raise.
_INTEGER_TEXT: Final = re.compile(r"[+-]?[0-9]{1,4300}")


def parse_level(value: object, version: RoomVersion) -> int | None:
    """Read one level, or give None where this room version does not take the value for one.

    Source: "m.room.power_levels events accept values as strings" (room versions 1 to 9) and "… as
    floats" (1 to 5).
    """
    if type(value) is int:  # not isinstance: true and false are no levels
        return value
    if version.integer_power_levels:
        return None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if _INTEGER_TEXT.fullmatch(text) else None
    if isinstance(value, float) and not version.strict_canonical_json:
        # "the value is truncated at the decimal point"; infinities and NaN are refused
        return int(value) if math.isfinite(value) else None
    return None


def creators_of(create_event: Event) -> frozenset[str]:
    """Give the users who made the room.

    Room version 12: "the sender of the m.room.create event plus any additional_creators"; 11: its
    sender; before: its ``content.creator``.
    """
    version = create_event.version
    if version.creator_in_content:
        creator = create_event.content.get("creator")
        return frozenset((creator,)) if isinstance(creator, str) else frozenset()
    if not version.privileged_creators:
        return frozenset((create_event.sender,))
    additional = create_event.content.get("additional_creators")
    if not isinstance(additional, list):
        additional = []
    return frozenset((create_event.sender, *(user for user in additional if isinstance(user, str))))


@dataclass(frozen=True, slots=True)
class PowerLevels:
    """Answer what level a user has and what level an action needs, at one point of a room.

    Make it with ``PowerLevels.of`` once for each power-levels event and keep it: checking an event
    against it costs two look-ups. Levels that cannot be read count as absent.
    """

    INFINITE: ClassVar[int] = 1 << 62
    """The level of a room version 12 creator: above every level that an event can state."""

    version: RoomVersion
    privileged: frozenset[str]
    users: Mapping[str, Any]
    events: Mapping[str, Any]
    notifications: Mapping[str, Any]
    users_default: int
    events_default: int
    state_default: int
    ban: int
    redact: int
    kick: int
    invite: int

    @classmethod
    def of(cls, power_levels_event: Event | None, create_event: Event) -> PowerLevels:
        """Read the levels of a room from its power-levels event, if it has one, and its create event."""
        version = create_event.version
        creators = creators_of(create_event)
        content: Mapping[str, Any]
        if power_levels_event is not None:
            content = power_levels_event.content
        elif version.privileged_creators:
            content = _NO_LEVELS
        else:
            # "If the room contains no m.room.power_levels event, the room's creator has a power level
            # of 100, and all other users have a power level of 0"
            content = {"users": dict.fromkeys(creators, 100)}

        def level(name: str, default: int) -> int:
            parsed = parse_level(content.get(name), version)
            return default if parsed is None else parsed

        return cls(
            version=version,
            privileged=creators if version.privileged_creators else frozenset(),
            users=_mapping(content.get("users")),
            events=_mapping(content.get("events")),
            notifications=_mapping(content.get("notifications")),
            users_default=level("users_default", 0),
            events_default=level("events_default", 0),
            state_default=level("state_default", 50),
            ban=level("ban", 50),
            redact=level("redact", 50),
            kick=level("kick", 50),
            invite=level("invite", 0),
        )

    def user_level(self, user_id: str) -> int:
        """Give a user's level; ``INFINITE`` for the creators of a room of version 12 or later."""
        if user_id in self.privileged:
            return self.INFINITE
        level = parse_level(self.users.get(user_id), self.version)
        return self.users_default if level is None else level

    def event_level(self, event_type: str, is_state: bool) -> int:
        """Give the level that sending an event of this type needs ("required power level")."""
        level = parse_level(self.events.get(event_type), self.version)
        if level is not None:
            return level
        return self.state_default if is_state else self.events_default

    def notification_level(self, kind: str) -> int:
        """Give the level that a notification for everybody needs (``kind`` is ``room`` for ``@room``)."""
        level = parse_level(self.notifications.get(kind), self.version)
        return 50 if level is None else level


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NO_LEVELS
