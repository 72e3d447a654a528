"""Room versions 1 to 12 as data: each is a copy of an older one with rules replaced.

Code asks for a rule by its name, never for a version's number.
Source: the specification's "Room Versions" and its page for each version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ranvier.spec.errors import MatrixError


@dataclass(frozen=True, slots=True)
class RoomVersion:
    """Name every rule in which room versions differ."""

    identifier: str
    # -- event format ------------------------------------------------------------------
    event_id_in_pdu: bool  # v1, v2: the sender chooses the id; prev/auth events are [id, hashes] pairs
    event_id_urlsafe: bool  # v4+: URL-safe base64 of the reference hash (v3: standard base64)
    strict_canonical_json: bool  # v6+: integers within +-(2^53 - 1), no floats
    enforce_key_validity: bool  # v5+: a signing key must be valid at the event's time
    room_id_is_create_hash: (
        bool  # v12: '!' + hash of the create event; create has no room_id, is no auth event
    )
    # -- redaction ---------------------------------------------------------------------
    redaction_keeps_aliases: bool  # v1-5: m.room.aliases keeps `aliases`
    redaction_keeps_allow: bool  # v8+: m.room.join_rules keeps `allow`
    redaction_keeps_authorising_user: bool  # v9+: m.room.member keeps `join_authorised_via_users_server`
    redaction_cleaned_up: bool  # v11+: create kept whole, `invite`, `redacts` …
    redacts_in_content: bool  # v11+: m.room.redaction names its target in `content.redacts`
    redaction_needs_same_domain: bool  # v1, v2: auth rule 11 compares the domains of the event ids
    # -- authorisation -----------------------------------------------------------------
    aliases_authorised_by_domain: bool  # v1-5: the m.room.aliases rule
    limit_notifications_levels: bool  # v6+: changing `notifications` is checked like other levels
    knocking: bool  # v7+
    restricted_joins: bool  # v8+
    knock_restricted_joins: bool  # v10+
    integer_power_levels: bool  # v10+: levels must be integers, strings are refused
    creator_in_content: bool  # v1-10: m.room.create has content.creator; later it is the sender
    privileged_creators: bool  # v12: sender of create and additional_creators have infinite power
    # -- state resolution --------------------------------------------------------------
    state_resolution: Literal["v1", "v2", "v2.1"]


V1 = RoomVersion(
    identifier="1",
    event_id_in_pdu=True,
    event_id_urlsafe=False,
    strict_canonical_json=False,
    enforce_key_validity=False,
    room_id_is_create_hash=False,
    redaction_keeps_aliases=True,
    redaction_keeps_allow=False,
    redaction_keeps_authorising_user=False,
    redaction_cleaned_up=False,
    redacts_in_content=False,
    redaction_needs_same_domain=True,
    aliases_authorised_by_domain=True,
    limit_notifications_levels=False,
    knocking=False,
    restricted_joins=False,
    knock_restricted_joins=False,
    integer_power_levels=False,
    creator_in_content=True,
    privileged_creators=False,
    state_resolution="v1",
)
V2 = replace(V1, identifier="2", state_resolution="v2")
V3 = replace(V2, identifier="3", event_id_in_pdu=False, redaction_needs_same_domain=False)
V4 = replace(V3, identifier="4", event_id_urlsafe=True)
V5 = replace(V4, identifier="5", enforce_key_validity=True)
V6 = replace(
    V5,
    identifier="6",
    strict_canonical_json=True,
    redaction_keeps_aliases=False,
    aliases_authorised_by_domain=False,
    limit_notifications_levels=True,
)
V7 = replace(V6, identifier="7", knocking=True)
V8 = replace(V7, identifier="8", restricted_joins=True, redaction_keeps_allow=True)
V9 = replace(V8, identifier="9", redaction_keeps_authorising_user=True)
V10 = replace(V9, identifier="10", knock_restricted_joins=True, integer_power_levels=True)
V11 = replace(
    V10, identifier="11", redaction_cleaned_up=True, redacts_in_content=True, creator_in_content=False
)
V12 = replace(
    V11, identifier="12", room_id_is_create_hash=True, privileged_creators=True, state_resolution="v2.1"
)

ROOM_VERSIONS: dict[str, RoomVersion] = {
    version.identifier: version for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12)
}
DEFAULT_ROOM_VERSION = V12


def room_version(identifier: str) -> RoomVersion:
    """Find a room version, or raise 400 ``M_UNSUPPORTED_ROOM_VERSION``."""
    try:
        return ROOM_VERSIONS[identifier]
    except KeyError:
        raise MatrixError(
            "M_UNSUPPORTED_ROOM_VERSION", 400, f"This server does not know room version {identifier!r}"
        ) from None
