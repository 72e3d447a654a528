"""Signing keys, signatures on JSON and on events, and who must have signed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.spec import event_hashes, signatures
from ranvier.spec.errors import AuthError, MatrixError
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS, V1, V2, V3, V7, V8, V12, RoomVersion
from ranvier.spec.signatures import SigningKey, VerifyKey
from ranvier.spec.unpadded_base64 import decode_base64, encode_base64, encode_urlsafe_base64
from tests.spec.test_event_hashes import MINIMAL, REDACTABLE

SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"
KEY = SigningKey("ed25519:1", decode_base64(SEED))
KEY_ID = "ed25519:1"

objects = st.dictionaries(st.text(max_size=5), st.integers(-9, 9) | st.text(max_size=5), max_size=5)


@pytest.mark.parametrize(
    ("obj", "signature"),
    [
        ({}, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_json_signing_vectors(obj: dict[str, Any], signature: str) -> None:
    """If this fails, no other server talks to us."""
    signed = signatures.sign_json(obj, "domain", KEY)
    assert signed == {**obj, "signatures": {"domain": {KEY_ID: signature}}}
    signatures.verify_json(signed, "domain", KEY_ID, KEY.verify_key)


@pytest.mark.parametrize(
    ("pdu", "version", "content_hash", "signature"),
    [
        (
            MINIMAL,
            V3,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            REDACTABLE,
            V1,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ],
)
def test_event_signing_vectors(
    pdu: dict[str, Any], version: RoomVersion, content_hash: str, signature: str
) -> None:
    """If this fails, other servers drop every event of ours."""
    finished = deepcopy(pdu)
    event_id = signatures.finish_event(finished, version, "domain", KEY)
    assert finished == {
        **pdu,
        "hashes": {"sha256": content_hash},
        "signatures": {"domain": {KEY_ID: signature}},
    }
    assert event_id == event_hashes.event_id(finished, version)
    signatures.verify_event(finished, version, "domain", KEY_ID, KEY.verify_key)
    signatures.verify_event(redact(finished, version), version, "domain", KEY_ID, KEY.verify_key)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: f"v{version.identifier}")
def test_finished_events_verify_in_every_version(version: RoomVersion) -> None:
    """If this fails, rooms of this version work on one server only."""
    pdu = deepcopy(REDACTABLE) | {"unsigned": {"age": 1}, "signatures": {"old": {"ed25519:x": "y"}}}
    event_id = signatures.finish_event(pdu, version, "domain", KEY)
    assert event_hashes.check_content_hash(pdu)
    assert list(pdu["signatures"]) == ["domain"]
    assert event_id == event_hashes.event_id(pdu, version)
    signatures.verify_event(pdu, version, "domain", KEY_ID, KEY.verify_key)
    countersigned = signatures.sign_event(pdu, version, "other", KEY)
    assert event_hashes.event_id(countersigned, version) == event_id
    for server_name in ("domain", "other"):
        signatures.verify_event(countersigned, version, server_name, KEY_ID, KEY.verify_key)
    assert list(pdu["signatures"]) == ["domain"]


@settings(max_examples=50)
@given(objects, st.data())
def test_signed_objects_verify_and_changed_ones_do_not(obj: dict[str, Any], data: st.DataObject) -> None:
    """If this fails, a stranger can change what a server signed."""
    signed = signatures.sign_json({**obj, "unsigned": {"age": 1}}, "domain", KEY)
    signatures.verify_json({**signed, "unsigned": {"age": 2}}, "domain", KEY_ID, KEY.verify_key)
    covered = bytearray(signatures.json_signed_bytes(signed))
    signature = bytearray(signatures.signature_of(signed, "domain", KEY_ID))
    assert KEY.verify_key.is_valid(bytes(covered), bytes(signature))
    changed = data.draw(st.sampled_from([covered, signature]))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not KEY.verify_key.is_valid(bytes(covered), bytes(signature))


def test_signing_keeps_other_signatures() -> None:
    """If this fails, joining a restricted room fails, because the joining server's signature is lost."""
    first = signatures.sign_json({"a": 1}, "one", KEY)
    again = signatures.sign_json(first, "one", SigningKey("ed25519:2", bytes(32)))
    both = signatures.sign_json(again, "two", KEY)
    assert {name: sorted(keys) for name, keys in both["signatures"].items()} == {
        "one": [KEY_ID, "ed25519:2"],
        "two": [KEY_ID],
    }
    assert list(first["signatures"]["one"]) == [KEY_ID]
    assert signatures.key_ids_of(both, "one") == [KEY_ID, "ed25519:2"]


@pytest.mark.parametrize(
    "signed",
    [
        None,
        [],
        {},
        {"other": {KEY_ID: "YQ"}},
        {"domain": []},
        {"domain": {"ed25519:2": "YQ"}},
        {"domain": {KEY_ID: 5}},
        {"domain": {KEY_ID: "not base64!"}},
        {"domain": {KEY_ID: ""}},
        {"domain": {KEY_ID: "YQ"}},
        {"domain": {KEY_ID: encode_base64(bytes(64))}},
        {"domain": {KEY_ID: encode_base64(bytes(65))}},
    ],
)
def test_missing_and_odd_signatures(signed: Any) -> None:
    """If this fails, an unsigned object passes for a signed one, or a stranger gets a 500."""
    with pytest.raises(MatrixError) as error:
        signatures.verify_json({"a": 1, "signatures": signed}, "domain", KEY_ID, KEY.verify_key)
    assert error.value.errcode == "M_INVALID_SIGNATURE"
    assert signatures.key_ids_of({"signatures": signed}, "third") == []


def test_key_ids_of_ignores_unknown_algorithms() -> None:
    """If this fails, a server with a newer kind of key beside its Ed25519 key cannot be verified."""
    signed = {"signatures": {"a": {"ed25519:1": "x", "rsa:2": "y"}}}
    assert signatures.key_ids_of(signed, "a") == ["ed25519:1"]
    assert signatures.key_ids_of({}, "a") == []


def test_signing_key_file() -> None:
    """If this fails, a server moved here from Synapse loses its identity."""
    key = SigningKey.parse(f"ed25519 a_xyz {SEED}\n")
    assert (key.key_id, key.version) == ("ed25519:a_xyz", "a_xyz")
    # The two spare bits at the end of the specification's seed are set; we write them as 0.
    assert key.format() == f"ed25519 a_xyz {SEED[:-1]}0"
    assert SigningKey.parse(key.format()) == key
    published = key.verify_key.to_base64()
    assert VerifyKey.from_base64("ed25519:a_xyz", published) == key.verify_key


@pytest.mark.parametrize(
    "line",
    ["", "ed25519 a", f"rsa a {SEED}", f"ed25519 a:b {SEED}", "ed25519 a c2VjcmV0", "ed25519 a secret!"],
)
def test_bad_signing_keys_are_refused_without_being_shown(line: str) -> None:
    """If this fails, a typing error in the key file is a traceback, or the key is in the log."""
    with pytest.raises(MatrixError) as error:
        SigningKey.parse(line)
    assert "secret" not in str(error.value)
    assert "c2VjcmV0" not in str(error.value)


def test_keys_do_not_show_their_secret() -> None:
    """If this fails, a log line with a key in it gives the server's identity away."""
    assert repr(KEY) == "SigningKey(key_id='ed25519:1')"


def test_published_keys_have_32_bytes() -> None:
    """If this fails, an odd key of a stranger is a 500 at its first use."""
    with pytest.raises(MatrixError):
        VerifyKey.from_base64(KEY_ID, "YQ")


def member(sender: str, content: dict[str, Any], event_id: str = "$e:id.org") -> dict[str, Any]:
    return {"type": "m.room.member", "sender": sender, "content": content, "event_id": event_id}


VIA = "join_authorised_via_users_server"
INVITE_3PID = {"membership": "invite", "third_party_invite": {"signed": {}}}


@pytest.mark.parametrize(
    ("version", "pdu", "expected"),
    [
        (V12, {"type": "m.room.message", "sender": "@a:one:80", "content": {}}, {"one:80"}),
        (V12, {"type": "m.room.message", "sender": "@a:one", "content": INVITE_3PID}, {"one"}),
        (V1, member("@a:one", {"membership": "join"}), {"one", "id.org"}),
        (V2, member("@a:one", {"membership": "join"}, "$e:one"), {"one"}),
        (V3, member("@a:one", {"membership": "join"}), {"one"}),
        (V1, member("@a:one", INVITE_3PID), {"id.org"}),
        (V12, member("@a:one", INVITE_3PID), set()),
        (V12, member("@a:one", {**INVITE_3PID, "membership": "join"}), {"one"}),
        (V7, member("@a:one", {"membership": "join", VIA: "@b:two"}), {"one"}),
        (V8, member("@a:one", {"membership": "join", VIA: "@b:two"}), {"one", "two"}),
        (V12, member("@a:one", {"membership": "leave", VIA: "@b:two"}), {"one", "two"}),
    ],
)
def test_required_signers(version: RoomVersion, pdu: dict[str, Any], expected: set[str]) -> None:
    """If this fails, events are taken from servers that may not send them, or invites by email are lost."""
    assert signatures.required_signers(pdu, version) == expected


@pytest.mark.parametrize("authoriser", [None, 5, "two", "@b"])
def test_authorising_user_must_be_one(authoriser: Any) -> None:
    """If this fails, a join to a restricted room needs nobody's leave, or is a 500."""
    with pytest.raises(AuthError):
        signatures.required_signers(member("@a:one", {"membership": "join", VIA: authoriser}), V8)


@given(st.binary(max_size=70))
def test_base64_round_trip(data: bytes) -> None:
    """If this fails, keys and hashes are misread."""
    assert decode_base64(encode_base64(data)) == data
    assert "=" not in encode_base64(data)
    assert encode_urlsafe_base64(data) == encode_base64(data).replace("+", "-").replace("/", "_")


@pytest.mark.parametrize(
    ("plain", "encoded"),
    [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")],
)
def test_base64_examples_of_the_specification(plain: str, encoded: str) -> None:
    """If this fails, no key or signature can be exchanged."""
    assert encode_base64(plain.encode()) == encoded
    assert decode_base64(encoded) == plain.encode()
    assert decode_base64(encoded + "=" * (-len(encoded) % 4)) == plain.encode()


@pytest.mark.parametrize("text", ["a", "YQ=a", "Y Q", "-_-_", "ä", "\ud800", "YW\nJj"])
def test_bad_base64(text: str) -> None:
    """If this fails, a stranger's odd text is a 500, or two texts pass for one key."""
    with pytest.raises(MatrixError):
        decode_base64(text)
