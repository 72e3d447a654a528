"""What a new room begins with: its presets and its power levels, as data and pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ranvier.spec.room_versions import RoomVersion


@dataclass(frozen=True, slots=True)
class Preset:
    """Say what a preset sets. ``equal_invitees`` gives those invited the power of the creator."""

    join_rule: str
    history_visibility: str
    guest_access: str
    invite_level: int
    equal_invitees: bool = False

    @property
    def state(self) -> list[tuple[str, dict[str, Any]]]:
        """The events of the preset, in the order of the specification."""
        return [
            ("m.room.join_rules", {"join_rule": self.join_rule}),
            ("m.room.history_visibility", {"history_visibility": self.history_visibility}),
            ("m.room.guest_access", {"guest_access": self.guest_access}),
        ]


# Source: client-server API, POST /createRoom. Who may invite is ours to choose: in private rooms everybody.
PRESETS: Final = {
    "private_chat": Preset("invite", "shared", "can_join", 0),
    "trusted_private_chat": Preset("invite", "shared", "can_join", 0, equal_invitees=True),
    "public_chat": Preset("public", "shared", "forbidden", 50),
}

_EVENT_LEVELS: Final = {
    "m.room.name": 50,
    "m.room.avatar": 50,
    "m.room.canonical_alias": 50,
    "m.room.power_levels": 100,
    "m.room.history_visibility": 100,
    "m.room.server_acl": 100,
    "m.room.encryption": 100,
    "m.room.tombstone": 100,
}


def default_power_levels(
    version: RoomVersion, creator: str, equals: Iterable[str], preset: Preset
) -> dict[str, Any]:
    """Give the first power levels of a room; ``equals`` are given the creator's level."""
    return {
        # "In room versions 12 and later, the room creator is given infinite power level and cannot be
        # specified in the users field"
        "users": {} if version.privileged_creators else dict.fromkeys((creator, *equals), 100),
        "users_default": 0,
        # "the power level for sending m.room.tombstone events MUST explicitly be higher than state_default"
        "events": {**_EVENT_LEVELS, "m.room.tombstone": 150 if version.privileged_creators else 100},
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": preset.invite_level,
    }
