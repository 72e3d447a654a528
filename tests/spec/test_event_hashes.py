"""Content hashes, reference hashes and event ids."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import event_hashes
from ranvier.spec.room_versions import ROOM_VERSIONS, V1, V3, V4, V11, V12, RoomVersion

MINIMAL: dict[str, Any] = {
    "room_id": "!x:domain",
    "sender": "@a:domain",
    "origin": "domain",
    "origin_server_ts": 1000000,
    "signatures": {},
    "hashes": {},
    "type": "X",
    "content": {},
    "prev_events": [],
    "auth_events": [],
    "depth": 3,
    "unsigned": {"age_ts": 1000000},
}
REDACTABLE: dict[str, Any] = {
    "content": {"body": "Here is the message content"},
    "event_id": "$0:domain",
    "origin": "domain",
    "origin_server_ts": 1000000,
    "type": "m.room.message",
    "room_id": "!r:domain",
    "sender": "@u:domain",
    "signatures": {},
    "unsigned": {"age_ts": 1000000},
}
HASHED = {**MINIMAL, "hashes": {"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}}

since_v3 = st.sampled_from([version for version in ROOM_VERSIONS.values() if not version.event_id_in_pdu])
extras = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=4)


def reference_digest(pdu: dict[str, Any], drop: tuple[str, ...]) -> bytes:
    kept = {key: value for key, value in pdu.items() if key not in drop}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).digest()


@pytest.mark.parametrize(
    ("pdu", "expected"),
    [
        (MINIMAL, "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"),
        (REDACTABLE, "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"),
    ],
)
def test_content_hash_vectors(pdu: dict[str, Any], expected: str) -> None:
    """If this fails, other servers show our messages as redacted, and we show theirs so."""
    assert event_hashes.content_hash(pdu) == expected
    assert event_hashes.check_content_hash({**pdu, "hashes": {"sha256": expected}})
    assert event_hashes.check_content_hash({**pdu, "hashes": {"sha256": expected + "="}})


@pytest.mark.parametrize(
    "hashes", [None, {}, [], {"sha256": 1}, {"sha256": "?"}, {"sha256": "ä"}, {"sha256": "onLK"}]
)
def test_odd_hashes_are_wrong(hashes: Any) -> None:
    """If this fails, a changed message is shown as if its sender had written it, or a stranger gets a 500."""
    assert not event_hashes.check_content_hash({**REDACTABLE, "hashes": hashes})


def test_changed_content_is_noticed() -> None:
    """If this fails, a server in between can change a message."""
    good = {**REDACTABLE, "hashes": {"sha256": event_hashes.content_hash(REDACTABLE)}}
    assert not event_hashes.check_content_hash({**good, "content": {"body": "Another"}})


def test_event_ids_by_version() -> None:
    """If this fails, replies and redactions point to events that other servers do not know."""
    digest = reference_digest(HASHED, ("signatures", "unsigned"))
    standard = base64.b64encode(digest).decode().rstrip("=")
    url_safe = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert event_hashes.reference_hash(HASHED, V3) == standard
    assert event_hashes.event_id(HASHED, V3) == "$" + standard
    assert event_hashes.event_id(HASHED, V4) == "$" + url_safe
    without_origin = reference_digest(HASHED, ("signatures", "unsigned", "origin"))
    expected = "$" + base64.urlsafe_b64encode(without_origin).decode().rstrip("=")
    assert event_hashes.event_id(HASHED, V11) == expected
    assert event_hashes.event_id(REDACTABLE, V1) == "$0:domain"


def test_standard_and_url_safe_alphabets_differ() -> None:
    """If this fails, links to some events of room version 4 and later break in proxies."""
    pdus = [{**HASHED, "depth": depth} for depth in range(40)]
    assert any(set("+/") & set(event_hashes.event_id(pdu, V3)) for pdu in pdus)
    assert not any(set("+/=") & set(event_hashes.event_id(pdu, V12)) for pdu in pdus)


@given(since_v3, extras, extras, extras)
def test_id_covers_only_what_is_essential(
    version: RoomVersion, content: dict[str, Any], unsigned: dict[str, Any], signatures: dict[str, Any]
) -> None:
    """If this fails, an event changes its ID when it is redacted or gets another signature."""
    changed = {**HASHED, "content": content, "unsigned": unsigned, "signatures": signatures, "age": 5}
    assert event_hashes.event_id(changed, version) == event_hashes.event_id(HASHED, version)


@given(since_v3, st.sampled_from(["depth", "origin_server_ts", "sender", "type", "room_id", "state_key"]))
def test_id_covers_all_that_is_essential(version: RoomVersion, key: str) -> None:
    """If this fails, a server in between can move an event to another room, sender or time."""
    assert event_hashes.event_id({**HASHED, key: "1"}, version) != event_hashes.event_id(HASHED, version)
