"""The two hashes of an event, and the event id that the second one makes.

Source: server-server API, "Signing Events"; "Event IDs" in each room version.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from ranvier.spec import canonical_json
from ranvier.spec.errors import MatrixError
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.unpadded_base64 import decode_base64, encode_base64, encode_urlsafe_base64

_NOT_IN_CONTENT_HASH = frozenset(("unsigned", "signatures", "hashes"))


def content_hash(pdu: dict[str, Any]) -> str:
    """Hash the complete event but ``unsigned``, ``signatures`` and ``hashes`` (unpadded Base64)."""
    return encode_base64(_content_digest(pdu))


def _content_digest(pdu: dict[str, Any]) -> bytes:
    hashed = {key: value for key, value in pdu.items() if key not in _NOT_IN_CONTENT_HASH}
    # hashlib keeps the GIL below 2 KB: a thread would gain nothing for most events.
    return sha256(canonical_json.encode(hashed, keep_floats=True)).digest()


def check_content_hash(pdu: dict[str, Any]) -> bool:
    """Say whether ``hashes.sha256`` is the content hash; if not, only the redacted event may be used."""
    hashes = pdu.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    if not isinstance(claimed, str):
        return False
    try:
        # Compared decoded: padding is optional, and the bits after the last byte do not count.
        return decode_base64(claimed) == _content_digest(pdu)
    except MatrixError:
        return False


def essential_bytes(pdu: dict[str, Any], version: RoomVersion) -> bytes:
    """Give the bytes that are signed, and hashed for the event id.

    The canonical JSON of the redacted event without ``signatures`` and ``unsigned``.
    """
    redacted = redact(pdu, version)
    redacted.pop("signatures", None)
    return canonical_json.encode(redacted, keep_floats=True)


def reference_hash(pdu: dict[str, Any], version: RoomVersion) -> str:
    """Hash the essential fields of the event (unpadded Base64, standard alphabet).

    Room versions 1 and 2 list it beside the id in ``prev_events`` and ``auth_events``.
    """
    return encode_base64(sha256(essential_bytes(pdu, version)).digest())


def event_id(pdu: dict[str, Any], version: RoomVersion) -> str:
    """Give the id of an event: its own field in room versions 1 and 2, later ``$`` + reference hash."""
    if version.event_id_in_pdu:
        given: str = pdu["event_id"]
        return given
    return event_id_of(essential_bytes(pdu, version), version)


def event_id_of(essential: bytes, version: RoomVersion) -> str:
    """Give the id (room version 3 and later) of the event with these ``essential_bytes``."""
    digest = sha256(essential).digest()
    # Version 3 writes standard Base64, later ones the URL-safe alphabet.
    return "$" + (encode_urlsafe_base64(digest) if version.event_id_urlsafe else encode_base64(digest))
