"""What is left of an event after redaction: the part that signatures and event ids cover.

Source: "Redactions" in each room version.
"""

from __future__ import annotations

from typing import Any

from ranvier.spec.room_versions import RoomVersion

_KEPT_KEYS = (
    "event_id",
    "type",
    "room_id",
    "sender",
    "state_key",
    "content",
    "hashes",
    "signatures",
    "depth",
    "prev_events",
    "auth_events",
    "origin_server_ts",
)
_KEPT_KEYS_BEFORE_V11 = (*_KEPT_KEYS, "prev_state", "origin", "membership")

_Kept = tuple[tuple[str, str | None], ...]

# Event type -> keys of `content` that stay, each with the rule of the room version that it needs.
_KEPT_CONTENT: dict[str, _Kept] = {
    "m.room.member": (
        ("membership", None),
        ("join_authorised_via_users_server", "redaction_keeps_authorising_user"),
    ),
    "m.room.create": (("creator", None),),
    "m.room.join_rules": (("join_rule", None), ("allow", "redaction_keeps_allow")),
    "m.room.power_levels": (
        ("ban", None),
        ("events", None),
        ("events_default", None),
        ("invite", "redaction_cleaned_up"),
        ("kick", None),
        ("redact", None),
        ("state_default", None),
        ("users", None),
        ("users_default", None),
    ),
    "m.room.aliases": (("aliases", "redaction_keeps_aliases"),),
    "m.room.history_visibility": (("history_visibility", None),),
    "m.room.redaction": (("redacts", "redaction_cleaned_up"),),
}


def redact(pdu: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Give the redacted form of a PDU: a new object that shares its kept values with ``pdu``.

    ``unsigned`` goes, ``hashes`` and ``signatures`` stay. Expects a ``pdu`` whose ``content`` is an
    object and whose ``type`` is a string (``spec.event_format``).
    """
    keys = _KEPT_KEYS if version.redaction_cleaned_up else _KEPT_KEYS_BEFORE_V11
    redacted = {key: pdu[key] for key in keys if key in pdu}
    redacted["content"] = redact_content(pdu["type"], pdu["content"], version)
    return redacted


def redact_content(event_type: str, content: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Give what redaction leaves of the ``content`` of an event of this type."""
    kept = _KEPT_CONTENT.get(event_type)
    if kept is None:
        return {}
    if version.redaction_cleaned_up:
        # "m.room.create allows all keys"
        if event_type == "m.room.create":
            return content
        if event_type == "m.room.member":
            return _redact_member_with_invite(kept, content, version)
    return _keep(kept, content, version)


def _keep(kept: _Kept, content: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    return {
        key: content[key] for key, rule in kept if key in content and (rule is None or getattr(version, rule))
    }


def _redact_member_with_invite(kept: _Kept, content: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    redacted = _keep(kept, content, version)
    # "Additionally, it allows the `signed` key of the `third_party_invite` key": the object around
    # it stays even when `signed` is missing, as on the servers that are deployed, or ids would differ.
    invite = content.get("third_party_invite")
    if isinstance(invite, dict):
        redacted["third_party_invite"] = {"signed": invite["signed"]} if "signed" in invite else {}
    return redacted
