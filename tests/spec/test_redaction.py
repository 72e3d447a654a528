"""Redaction: what stays of each event in each room version."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS, RoomVersion

ALL = range(1, 13)
TOP_LEVEL = ["event_id", "room_id", "sender", "state_key", "hashes", "signatures", "depth", "prev_events"]
TOP_LEVEL += ["auth_events", "origin_server_ts"]
ONLY_BEFORE_11 = ["prev_state", "origin", "membership"]
NEVER = ["unsigned", "redacts", "age", "org.example.custom"]

# (event type, key of content, room versions in which it stays)
CONTENT: list[tuple[str, str, range]] = [
    ("m.room.member", "membership", ALL),
    ("m.room.member", "join_authorised_via_users_server", range(9, 13)),
    ("m.room.member", "displayname", range(0)),
    ("m.room.member", "reason", range(0)),
    ("m.room.create", "creator", ALL),
    ("m.room.create", "room_version", range(11, 13)),
    ("m.room.create", "m.federate", range(11, 13)),
    ("m.room.create", "additional_creators", range(11, 13)),
    ("m.room.join_rules", "join_rule", ALL),
    ("m.room.join_rules", "allow", range(8, 13)),
    ("m.room.power_levels", "ban", ALL),
    ("m.room.power_levels", "events", ALL),
    ("m.room.power_levels", "events_default", ALL),
    ("m.room.power_levels", "invite", range(11, 13)),
    ("m.room.power_levels", "kick", ALL),
    ("m.room.power_levels", "redact", ALL),
    ("m.room.power_levels", "state_default", ALL),
    ("m.room.power_levels", "users", ALL),
    ("m.room.power_levels", "users_default", ALL),
    ("m.room.power_levels", "notifications", range(0)),
    ("m.room.aliases", "aliases", range(1, 6)),
    ("m.room.history_visibility", "history_visibility", ALL),
    ("m.room.redaction", "redacts", range(11, 13)),
    ("m.room.redaction", "reason", range(0)),
    ("m.room.message", "body", range(0)),
    ("m.room.message", "membership", range(0)),
    ("m.room.name", "name", range(0)),
]

versions = st.sampled_from(list(ROOM_VERSIONS.values()))
event_types = st.sampled_from([event_type for event_type, _, _ in CONTENT])
content_keys = st.sampled_from([key for _, key, _ in CONTENT] + ["third_party_invite", "signed"])
json_values = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
contents = st.dictionaries(content_keys, json_values | st.dictionaries(content_keys, json_values))
pdus = st.builds(
    lambda event_type, content, rest: {**rest, "type": event_type, "content": content},
    event_types,
    contents,
    st.dictionaries(st.sampled_from(TOP_LEVEL + ONLY_BEFORE_11 + NEVER), json_values),
)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: f"v{version.identifier}")
@pytest.mark.parametrize(("event_type", "key", "kept_in"), CONTENT, ids=str)
def test_content_keys(version: RoomVersion, event_type: str, key: str, kept_in: range) -> None:
    """If this fails, events of this type have another ID here than on other servers."""
    pdu = {"type": event_type, "content": {key: ["value"], "org.example.other": 1}, "depth": 3}
    expected: dict[str, Any] = {key: ["value"]} if int(version.identifier) in kept_in else {}
    if event_type == "m.room.create" and version.redaction_cleaned_up:
        expected["org.example.other"] = 1
    assert redact(pdu, version) == {"type": event_type, "content": expected, "depth": 3}


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: f"v{version.identifier}")
def test_top_level_keys(version: RoomVersion) -> None:
    """If this fails, every event of this room version has a wrong signature."""
    every = dict.fromkeys(TOP_LEVEL + ONLY_BEFORE_11 + NEVER, 1) | {"type": "m.x", "content": {"a": 1}}
    kept = TOP_LEVEL if int(version.identifier) >= 11 else TOP_LEVEL + ONLY_BEFORE_11
    assert redact(every, version) == dict.fromkeys(kept, 1) | {"type": "m.x", "content": {}}


@pytest.mark.parametrize(
    ("invite", "kept"),
    [
        ({"display_name": "a", "signed": {"token": "t"}}, {"third_party_invite": {"signed": {"token": "t"}}}),
        ({"display_name": "a"}, {"third_party_invite": {}}),
        ("odd", {}),
        (None, {}),
    ],
)
def test_third_party_invites(invite: Any, kept: dict[str, Any]) -> None:
    """If this fails, invites by email have another ID here than on other servers (room version 11)."""
    pdu = {"type": "m.room.member", "content": {"membership": "invite", "third_party_invite": invite}}
    assert redact(pdu, ROOM_VERSIONS["11"])["content"] == {"membership": "invite", **kept}
    assert redact(pdu, ROOM_VERSIONS["10"])["content"] == {"membership": "invite"}


@given(pdus, versions)
def test_redaction_is_idempotent_and_does_not_mutate(pdu: dict[str, Any], version: RoomVersion) -> None:
    """If this fails, an event that we got redacted has another ID than the full one, or loses its text."""
    before = deepcopy(pdu)
    once = redact(pdu, version)
    assert pdu == before
    assert redact(once, version) == once
