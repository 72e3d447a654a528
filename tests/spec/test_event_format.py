"""The form of PDUs: what is accepted in each room version, and what we build."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import canonical_json, event_format, signatures
from ranvier.spec.errors import MatrixError
from ranvier.spec.event import Event
from ranvier.spec.event_format import build_pdu, check_format
from ranvier.spec.room_versions import ROOM_VERSIONS, V1, V5, V6, V10, V11, V12, RoomVersion
from ranvier.spec.signatures import SigningKey

KEY = SigningKey("ed25519:1", bytes(32))
HASH = "31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM"
ID = "$" + HASH
every_version = pytest.mark.parametrize(
    "version", ROOM_VERSIONS.values(), ids=lambda version: f"v{version.identifier}"
)


def finished(version: RoomVersion, **changes: Any) -> dict[str, Any]:
    """Build and sign an event of ours, a message unless ``changes`` say otherwise."""
    old = version.event_id_in_pdu
    refers_to = "$before:a.org" if old else ID
    arguments: dict[str, Any] = {
        "room_id": "!" + HASH if version.room_id_is_create_hash else "!r:a.org",
        "sender": "@alice:a.org",
        "type": "m.room.message",
        "content": {"body": "hello"},
        "prev_events": [refers_to],
        "auth_events": [refers_to, refers_to],
        "depth": 7,
        "origin_server_ts": 1700000000000,
        "event_id": "$new:a.org" if old else None,
        "reference_hashes": {"$before:a.org": HASH} if old else None,
    }
    pdu = build_pdu(version, **(arguments | changes))
    signatures.finish_event(pdu, version, "a.org", KEY)
    return pdu


@every_version
def test_what_we_build_is_what_others_accept(version: RoomVersion) -> None:
    """If this fails, messages in rooms of this version never leave the server."""
    message = finished(version)
    assert check_format(orjson.loads(orjson.dumps(message)), version) == message
    state = finished(version, type="m.room.topic", state_key="", unsigned={"age": 4})
    assert check_format(state, version)["state_key"] == ""
    event = Event(message, "$id", version)
    before = "$before:a.org" if version.event_id_in_pdu else ID
    assert (event.prev_event_ids, event.auth_event_ids) == ([before], [before, before])


def test_first_room_versions_name_events_by_id_and_hash() -> None:
    """If this fails, rooms of versions 1 and 2 cannot be written to."""
    pdu = finished(V1)
    assert pdu["prev_events"] == [["$before:a.org", {"sha256": HASH}]]
    assert (pdu["event_id"], pdu["origin"]) == ("$new:a.org", "a.org")


def test_redactions_name_their_target_where_the_version_wants_it() -> None:
    """If this fails, redactions do nothing on other servers."""
    old, new = (finished(version, type="m.room.redaction", redacts=ID) for version in (V10, V11))
    assert (old["redacts"], old["content"]) == (ID, {"body": "hello"})
    assert "redacts" not in new
    assert new["content"] == {"body": "hello", "redacts": ID}
    assert Event(old, ID, V10).redacts == Event(new, ID, V11).redacts == ID


def test_create_event_of_version_12_has_no_room_id() -> None:
    """If this fails, no room of the default version can be created."""
    create = {"type": "m.room.create", "state_key": "", "prev_events": [], "auth_events": []}
    pdu = finished(V12, room_id=None, **create)
    assert "room_id" not in check_format(pdu, V12)
    with pytest.raises(MatrixError, match="no room_id"):
        check_format(finished(V12, **create), V12)
    with pytest.raises(MatrixError, match="room_id"):
        check_format({key: value for key, value in finished(V11, **create).items() if key != "room_id"}, V11)


def test_depth_stops_at_the_limit() -> None:
    """If this fails, a room whose depth somebody drove to the limit takes no more messages."""
    assert finished(V12, depth=2**60)["depth"] == 2**53 - 1
    assert finished(V5, depth=2**64)["depth"] == 2**63 - 1


@pytest.mark.parametrize("changes", [{"type": "x" * 256}, {"state_key": "ä" * 128}])
def test_too_long_names_are_not_built(changes: dict[str, Any]) -> None:
    """If this fails, a client can send an event that other servers drop."""
    with pytest.raises(MatrixError) as error:
        finished(V12, **changes)
    assert error.value.errcode == "M_INVALID_PARAM"


REMOVED = object()

BAD_VALUES: dict[str, list[Any]] = {
    "type": [REMOVED, None, 5, "x" * 256, "ä" * 128],
    "state_key": [None, 5, "x" * 256],
    "sender": [REMOVED, None, "alice", "@alice", "@a:" + "b" * 253, "!a:b"],
    "room_id": [REMOVED, None, 5, "room", "@r:a.org", "!x", "!a:" + "b" * 253],
    "content": [REMOVED, None, [], "x"],
    "unsigned": [None, [], "x"],
    "origin_server_ts": [REMOVED, None, "1", True, 1.0, 2**63, -(2**63) - 1],
    "depth": [REMOVED, None, "1", True, 1.0, -1, 2**63],
    "hashes": [REMOVED, None, [], {}, {"sha256": 5}],
    "signatures": [REMOVED, None, [], {"a": None}, {"a": {"ed25519:1": 5}}],
    "prev_events": [
        REMOVED,
        None,
        {},
        "x",
        [5],
        [ID, None],
        ["x"],
        [["$a:b"]],
        [[ID, "hash"]],
        [ID] * 21,
    ],
    "auth_events": [REMOVED, None, {}, [{}], [ID] * 11],
}
BAD = [(field, value) for field, values in BAD_VALUES.items() for value in values]


@pytest.mark.parametrize("version", [V1, V10, V12], ids=["v1", "v10", "v12"])
@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_fields(field: str, value: Any, version: RoomVersion) -> None:
    """If this fails, a stranger's event with a wrong field ends as a 500, or in the database."""
    pdu = finished(version)
    if value is REMOVED:
        del pdu[field]
    else:
        pdu[field] = value
    with pytest.raises(MatrixError) as error:
        check_format(pdu, version)
    assert error.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("pdu", [None, [], "x", 5])
def test_events_are_objects(pdu: object) -> None:
    """If this fails, a list in place of an event is a 500."""
    with pytest.raises(MatrixError):
        check_format(pdu, V12)


def test_counts_at_their_limits_pass() -> None:
    """If this fails, a busy room's merge events are refused, and the room splits."""
    pdu = finished(V12, prev_events=[ID] * 20, auth_events=[ID] * 10)
    assert check_format(pdu, V12) is pdu


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (V1, {"event_id": None}),
        (V1, {"event_id": "$nodomain"}),
        (V1, {"prev_events": [[ID, {"sha256": HASH}, 1]]}),
        (V10, {"redacts": 5}),
        (V11, {"room_id": "!" + HASH}),
        (V12, {"room_id": "!r:a.org"}),
        (V6, {"depth": 2**53}),
        (V6, {"content": {"n": 1.5}}),
        (V6, {"content": {"n": 2**53}}),
    ],
)
def test_fields_that_depend_on_the_version(version: RoomVersion, changes: dict[str, Any]) -> None:
    """If this fails, events of one room version get into a room of another."""
    with pytest.raises(MatrixError) as error:
        check_format(finished(version) | changes, version)
    assert error.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (V5, {"depth": 2**53}),
        (V5, {"content": {"n": 1.5, "m": 2**53}}),
        (V11, {"redacts": 5}),
        (V12, {"sender": "@:a.org"}),
        (V12, {"sender": "@Ünïcode and space:a.org"}),
        (V12, {"origin_server_ts": -1}),
        (V12, {"org.example.extra": [{}], "origin": 5}),
        (V12, {"signatures": {}}),
    ],
)
def test_odd_but_legal_events_pass(version: RoomVersion, changes: dict[str, Any]) -> None:
    """If this fails, we alone refuse an event, and the room looks different here."""
    pdu = finished(version) | changes
    assert check_format(pdu, version) is pdu


def test_size_limit_counts_the_complete_event() -> None:
    """If this fails, an event is taken here and refused elsewhere, or the other way round."""
    pdu = finished(V12, content={"body": ""})
    room = event_format.MAX_EVENT_BYTES - len(canonical_json.encode(pdu))
    pdu["content"] = {"body": "x" * room}
    assert check_format(pdu, V12) is pdu
    pdu["content"] = {"body": "x" * (room + 1)}
    with pytest.raises(MatrixError) as error:
        check_format(pdu, V12)
    assert (error.value.errcode, error.value.status) == ("M_TOO_LARGE", 413)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*finished(V1), "state_key", "redacts", "unsigned"]), json_values))
def test_any_json_gets_an_answer(changes: dict[str, Any]) -> None:
    """If this fails, some JSON that a stranger can send is a 500."""
    for version in (V1, V10, V12):
        pdu = deepcopy(finished(version)) | changes
        try:
            checked: object = check_format(pdu, version)
        except MatrixError:
            continue
        assert checked is pdu
