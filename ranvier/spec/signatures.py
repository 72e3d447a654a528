"""Ed25519 signatures on JSON objects and on events, and who must have signed an event.

Source: appendices, "Signing JSON"; server-server API, "Signing Events".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from ranvier.spec import canonical_json
from ranvier.spec.errors import AuthError, MatrixError, invalid_param
from ranvier.spec.event_hashes import content_hash, essential_bytes, event_id_of
from ranvier.spec.ids import domain_of, is_user_id
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.unpadded_base64 import decode_base64, encode_base64

_ALGORITHM = "ed25519"
_KEY_ID = re.compile(r"ed25519:[a-zA-Z0-9_]+")
_SIGNATURE_BYTES = 64


def invalid_signature(message: str) -> MatrixError:
    """Say that a signature is missing or wrong (400 ``M_INVALID_SIGNATURE``)."""
    return MatrixError("M_INVALID_SIGNATURE", 400, message)


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """Hold the public half of a signing key: ``key`` is 32 bytes."""

    key_id: str
    key: bytes

    @classmethod
    def from_base64(cls, key_id: str, text: str) -> VerifyKey:
        """Read a published key, or raise 400 ``M_INVALID_PARAM``."""
        key = decode_base64(text)
        if len(key) != 32:
            raise invalid_param(f"The key {key_id} is not 32 bytes long")
        return cls(key_id, key)

    def to_base64(self) -> str:
        """Write the key as it is published."""
        return encode_base64(self.key)

    def is_valid(self, signed: bytes, signature: bytes) -> bool:
        """Say whether ``signature`` (64 bytes) of these bytes was made with this key; releases the GIL."""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + signed, self.key)
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Hold a server's signing key: ``key_id`` like ``ed25519:a_xyz``, ``seed`` 32 secret bytes."""

    key_id: str
    seed: bytes = field(repr=False)
    _secret: bytes = field(init=False, repr=False, compare=False)
    _public: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if _KEY_ID.fullmatch(self.key_id) is None:
            raise invalid_param("A signing key is named like ed25519:a_xyz")
        if len(self.seed) != 32:
            raise invalid_param("The seed of a signing key is 32 bytes long")
        public, secret = crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "_public", public)
        object.__setattr__(self, "_secret", secret)

    @classmethod
    def parse(cls, line: str) -> SigningKey:
        """Read ``ed25519 a_xyz <seed in Base64>``, a line of a signing key file.

        Raises 400 ``M_INVALID_PARAM`` that names what is wrong, never the key.
        """
        words = line.split()
        if len(words) != 3 or words[0] != _ALGORITHM:
            raise invalid_param("A signing key is a line of three words: ed25519, a version, a Base64 seed")
        return cls(f"{_ALGORITHM}:{words[1]}", decode_base64(words[2]))

    def format(self) -> str:
        """Write the line that ``parse`` reads, without a line feed."""
        return f"{_ALGORITHM} {self.version} {encode_base64(self.seed)}"

    @property
    def version(self) -> str:
        """The part of the key id after the algorithm."""
        return self.key_id.partition(":")[2]

    @property
    def verify_key(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self.key_id, self._public)

    def sign(self, signed: bytes) -> str:
        """Sign bytes; the signature is unpadded Base64."""
        return encode_base64(crypto_sign(signed, self._secret)[:_SIGNATURE_BYTES])


def json_signed_bytes(obj: dict[str, Any]) -> bytes:
    """Give the bytes of an object that a signature covers: all but ``signatures`` and ``unsigned``."""
    return canonical_json.encode({k: v for k, v in obj.items() if k not in ("signatures", "unsigned")})


def sign_json(obj: dict[str, Any], server_name: str, key: SigningKey) -> dict[str, Any]:
    """Give a copy of ``obj`` with one more signature, beside those that it has.

    ``signatures``, if there, must be an object of objects: check what a stranger sent before.
    """
    return _with_signature(obj, server_name, key, json_signed_bytes(obj))


def _with_signature(obj: dict[str, Any], server_name: str, key: SigningKey, signed: bytes) -> dict[str, Any]:
    signatures = obj.get("signatures", {})
    own = {**signatures.get(server_name, {}), key.key_id: key.sign(signed)}
    return {**obj, "signatures": {**signatures, server_name: own}}


def signature_of(obj: dict[str, Any], server_name: str, key_id: str) -> bytes:
    """Find a signature in an object somebody sent, or raise 400 ``M_INVALID_SIGNATURE``."""
    found: Any = obj.get("signatures")
    for step in (server_name, key_id):
        found = found.get(step) if isinstance(found, dict) else None
    if not isinstance(found, str):
        raise invalid_signature(f"There is no signature by {server_name} with {key_id}")
    try:
        return decode_base64(found)
    except MatrixError:
        raise invalid_signature(f"The signature by {server_name} with {key_id} is not Base64") from None


def key_ids_of(obj: dict[str, Any], server_name: str) -> list[str]:
    """List the Ed25519 keys with which a server claims to have signed ``obj``."""
    signatures = obj.get("signatures")
    own = signatures.get(server_name) if isinstance(signatures, dict) else None
    if not isinstance(own, dict):
        return []
    # "Removes any signing key identifiers … with algorithms it doesn't understand"
    return [key_id for key_id in own if key_id.startswith(_ALGORITHM + ":")]


def verify_json(obj: dict[str, Any], server_name: str, key_id: str, verify_key: VerifyKey) -> None:
    """Check that ``server_name`` signed ``obj`` with this key, or raise 400 ``M_INVALID_SIGNATURE``."""
    _verify(obj, server_name, key_id, verify_key, json_signed_bytes(obj))


def verify_event(
    pdu: dict[str, Any], version: RoomVersion, server_name: str, key_id: str, verify_key: VerifyKey
) -> None:
    """Check a server's signature on an event, redacted or not, or raise 400 ``M_INVALID_SIGNATURE``.

    To check many at once in threads, take ``essential_bytes``, ``signature_of`` and ``VerifyKey.is_valid``.
    """
    _verify(pdu, server_name, key_id, verify_key, essential_bytes(pdu, version))


def _verify(obj: dict[str, Any], server_name: str, key_id: str, key: VerifyKey, signed: bytes) -> None:
    if not key.is_valid(signed, signature_of(obj, server_name, key_id)):
        raise invalid_signature(f"The signature by {server_name} with {key_id} is wrong")


def finish_event(pdu: dict[str, Any], version: RoomVersion, server_name: str, key: SigningKey) -> str:
    """Add our hash and signature to a new event, in place, and give its id.

    Earlier ``hashes`` and ``signatures`` are replaced. The essential form is encoded once: the bytes
    that are signed are those that the id hashes. The content must have passed ``canonical_json.check``.
    """
    pdu["hashes"] = {"sha256": content_hash(pdu)}
    essential = essential_bytes(pdu, version)
    pdu["signatures"] = {server_name: {key.key_id: key.sign(essential)}}
    if version.event_id_in_pdu:
        given: str = pdu["event_id"]
        return given
    return event_id_of(essential, version)


def sign_event(
    pdu: dict[str, Any], version: RoomVersion, server_name: str, key: SigningKey
) -> dict[str, Any]:
    """Give a copy of an event that another server made, with our signature beside the others."""
    return _with_signature(pdu, server_name, key, essential_bytes(pdu, version))


def required_signers(pdu: dict[str, Any], version: RoomVersion) -> frozenset[str]:
    """Name the servers without whose signature an event must not be taken.

    Expects a PDU that passed ``event_format.check_format``. Raises 403 ``M_FORBIDDEN`` when it names
    an authorising user that is none. Source: server-server API, "Validating hashes and signatures".
    """
    signers: set[str] = set()
    is_member = pdu["type"] == "m.room.member"
    content = pdu["content"]
    # "unless the event is a 3rd party invite, only the signature(s) from … the server the `sender`
    # belongs to": the invite may be sent by another server than that of its sender.
    is_third_party_invite = (
        is_member and content.get("membership") == "invite" and "third_party_invite" in content
    )
    if not is_third_party_invite:
        signers.add(domain_of(pdu["sender"]))
    # "Room versions 1 and 2 also require that a signature is present from the domain in the `event_id`"
    if version.event_id_in_pdu:
        signers.add(domain_of(pdu["event_id"]))
    # "If `content` has a `join_authorised_via_users_server` key: if the event is not validly signed
    # by the homeserver of the user ID denoted by the key, reject."
    if is_member and version.restricted_joins and "join_authorised_via_users_server" in content:
        authoriser = content["join_authorised_via_users_server"]
        if not is_user_id(authoriser):
            raise AuthError("join_authorised_via_users_server is not a user ID")
        signers.add(domain_of(authoriser))
    return frozenset(signers)
