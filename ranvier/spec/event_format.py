"""The form of a PDU in each room version: checked when it comes from others, built when it is ours.

Source: "Event format" in each room version; client-server API, "Size limits".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ranvier.spec import canonical_json
from ranvier.spec.errors import MatrixError, bad_json
from ranvier.spec.ids import (
    check_event_type,
    check_state_key,
    domain_of,
    fits,
    is_event_id,
    is_hash_room_id,
    is_room_id,
    is_user_id,
)
from ranvier.spec.room_versions import RoomVersion

MAX_EVENT_BYTES = 65536
MAX_PREV_EVENTS = 20
MAX_AUTH_EVENTS = 10
MAX_DEPTH = 2**53 - 1
"""Largest depth of an event since room version 6."""
MAX_DEPTH_BEFORE_V6 = 2**63 - 1

_INT64 = 2**63


def check_event_size(encoded: bytes) -> None:
    """Check the size of a complete event, signatures included, written as JSON without spaces.

    The order of keys does not matter to it. Raises 413 ``M_TOO_LARGE``.
    """
    if len(encoded) > MAX_EVENT_BYTES:
        raise MatrixError("M_TOO_LARGE", 413, f"An event is at most {MAX_EVENT_BYTES} bytes")


def check_format(pdu: object, version: RoomVersion) -> dict[str, Any]:
    """Check that what another server sent is an event of this room version, and give it back.

    Only the form: types, required fields, counts and sizes. Whether it may be sent is decided by
    signatures, hashes and authorisation. Raises 400 ``M_BAD_JSON``, or 413 ``M_TOO_LARGE``.
    """
    if not isinstance(pdu, dict):
        raise bad_json("An event is a JSON object")
    canonical_json.check(pdu, strict=version.strict_canonical_json)
    _check_strings(pdu)
    _check_ids(pdu, version)
    _check_numbers(pdu, version)
    _check_objects(pdu)
    _check_references(pdu, "prev_events", MAX_PREV_EVENTS, version)
    _check_references(pdu, "auth_events", MAX_AUTH_EVENTS, version)
    check_event_size(canonical_json.encode(pdu, keep_floats=True))
    return pdu


def _check_strings(pdu: dict[str, Any]) -> None:
    if not isinstance(pdu.get("type"), str) or not fits(pdu["type"]):
        raise bad_json("type must be a string of at most 255 bytes")
    if "state_key" in pdu and (not isinstance(pdu["state_key"], str) or not fits(pdu["state_key"])):
        raise bad_json("state_key must be a string of at most 255 bytes")


def _check_ids(pdu: dict[str, Any], version: RoomVersion) -> None:
    if not is_user_id(pdu.get("sender")):
        raise bad_json("sender must be a user ID")
    _check_room_id(pdu, version)
    if version.event_id_in_pdu and not (is_event_id(pdu.get("event_id")) and ":" in pdu["event_id"]):
        raise bad_json("event_id must be an event ID with a server name")
    if "redacts" in pdu and not version.redacts_in_content and not isinstance(pdu["redacts"], str):
        raise bad_json("redacts must be an event ID")


def _check_room_id(pdu: dict[str, Any], version: RoomVersion) -> None:
    room_id = pdu.get("room_id")
    if not version.room_id_is_create_hash:
        if not is_room_id(room_id) or ":" not in room_id:
            raise bad_json("room_id must be a room ID with a server name")
    elif is_create(pdu):
        # "If the event has a `room_id`, reject": its id would be a hash of itself.
        if "room_id" in pdu:
            raise bad_json("The create event of this room version has no room_id")
    elif not is_hash_room_id(room_id):
        raise bad_json("room_id must be the hash of the create event")


def is_create(pdu: Mapping[str, Any]) -> bool:
    """Say whether a PDU is the create event of a room: that type, with the empty state key."""
    return pdu["type"] == "m.room.create" and pdu.get("state_key") == ""


def _check_numbers(pdu: dict[str, Any], version: RoomVersion) -> None:
    timestamp, depth = pdu.get("origin_server_ts"), pdu.get("depth")
    # A bool is an int to Python, but not to JSON.
    if type(timestamp) is not int or not -_INT64 <= timestamp < _INT64:
        raise bad_json("origin_server_ts must be an integer of 64 bits")
    limit = MAX_DEPTH if version.strict_canonical_json else MAX_DEPTH_BEFORE_V6
    # "The maximum depth of the `prev_events`, plus one", so never negative.
    if type(depth) is not int or not 0 <= depth <= limit:
        raise bad_json(f"depth must be an integer from 0 to {limit}")


def _check_objects(pdu: dict[str, Any]) -> None:
    if not isinstance(pdu.get("content"), dict):
        raise bad_json("content must be an object")
    if "unsigned" in pdu and not isinstance(pdu["unsigned"], dict):
        raise bad_json("unsigned must be an object")
    hashes = pdu.get("hashes")
    if not isinstance(hashes, dict) or not isinstance(hashes.get("sha256"), str):
        raise bad_json("hashes must be an object with a string sha256")
    signatures = pdu.get("signatures")
    if not isinstance(signatures, dict) or not all(_is_signature_map(own) for own in signatures.values()):
        raise bad_json("signatures must map server names to key IDs to signatures")


def _is_signature_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(signature, str) for signature in value.values())


def _check_references(pdu: dict[str, Any], field: str, limit: int, version: RoomVersion) -> None:
    references = pdu.get(field)
    if not isinstance(references, list) or len(references) > limit:
        raise bad_json(f"{field} must be an array of at most {limit} events")
    if version.event_id_in_pdu:
        for pair in references:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)):
                raise bad_json(f"{field} must be an array of pairs of an event ID and its hashes")
        references = [pair[0] for pair in references]
    if not all(is_event_id(reference) for reference in references):
        raise bad_json(f"{field} must name events by their IDs")


def build_pdu(
    version: RoomVersion,
    *,
    room_id: str | None,
    sender: str,
    type: str,
    content: dict[str, Any],
    prev_events: Sequence[str],
    auth_events: Sequence[str],
    depth: int,
    origin_server_ts: int,
    state_key: str | None = None,
    redacts: str | None = None,
    unsigned: dict[str, Any] | None = None,
    event_id: str | None = None,
    reference_hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Build an event of ours, without hashes and signatures (``signatures.finish_event`` adds those).

    ``prev_events`` and ``auth_events`` are event IDs. ``room_id`` is None for the create event of room
    version 12 alone. Room versions 1 and 2 need ``event_id`` (``ids.new_event_id``) and
    ``reference_hashes``, the hash of each event referred to. ``depth`` beyond the limit becomes the
    limit. ``origin_server_ts`` is in milliseconds.
    Raises 400 ``M_INVALID_PARAM`` for a type or state key over 255 bytes. ``content`` must have
    passed ``canonical_json.check``; it is not copied.
    """
    check_event_type(type)
    pdu: dict[str, Any] = {
        "type": type,
        "sender": sender,
        "content": content,
        "depth": min(depth, MAX_DEPTH if version.strict_canonical_json else MAX_DEPTH_BEFORE_V6),
        "origin_server_ts": origin_server_ts,
        "prev_events": list(prev_events),
        "auth_events": list(auth_events),
    }
    if state_key is not None:
        pdu["state_key"] = check_state_key(state_key)
    if room_id is not None:
        pdu["room_id"] = room_id
    else:
        assert version.room_id_is_create_hash
        assert is_create(pdu)
    if redacts is not None:
        _name_redacted(pdu, redacts, version)
    if unsigned:
        pdu["unsigned"] = unsigned
    if version.event_id_in_pdu:
        assert event_id is not None
        pdu["event_id"] = event_id
        pdu["origin"] = domain_of(sender)
        pdu["prev_events"] = _pairs(prev_events, reference_hashes or {})
        pdu["auth_events"] = _pairs(auth_events, reference_hashes or {})
    return pdu


def _name_redacted(pdu: dict[str, Any], redacts: str, version: RoomVersion) -> None:
    if version.redacts_in_content:
        pdu["content"] = {**pdu["content"], "redacts": redacts}
    else:
        pdu["redacts"] = redacts


def _pairs(event_ids: Sequence[str], reference_hashes: Mapping[str, str]) -> list[Any]:
    return [[event_id, {"sha256": reference_hashes[event_id]}] for event_id in event_ids]
