"""Canonical JSON: the specification's examples, its limits, and properties of every value."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import canonical_json
from ranvier.spec.errors import MatrixError

EXAMPLES = [
    ("{}", "{}"),
    ('{"one": 1, "two": "Two"}', '{"one":1,"two":"Two"}'),
    ('{"b": "2", "a": "1"}', '{"a":"1","b":"2"}'),
    ('{"b":"2","a":"1"}', '{"a":"1","b":"2"}'),
    (
        """{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",
        "three_pids": [{"medium": "email", "address": "john.doe@example.org"},
        {"medium": "msisdn", "address": "123456789"}]}}}""",
        '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":'
        '[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
        '"success":true}}',
    ),
    ('{"a": "日本語"}', '{"a":"日本語"}'),
    ('{"本": 2, "日": 1}', '{"日":1,"本":2}'),
    (r'{"a": "\u65E5"}', '{"a":"日"}'),
    ('{"a": null}', '{"a":null}'),
    ('{"a": -0, "b": 1e10}', '{"a":0,"b":10000000000}'),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(("source", "canonical"), EXAMPLES)
def test_examples_of_the_specification(source: str, canonical: str) -> None:
    """If this fails, other servers refuse our signatures on whatever holds such a value."""
    assert canonical_json.encode(orjson.loads(source)) == canonical.encode()


@given(values)
def test_round_trip_and_reference_encoder(value: Any) -> None:
    """If this fails, some message gets a hash that other servers do not compute."""
    encoded = canonical_json.encode(value)
    assert orjson.loads(encoded) == value
    reference = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert encoded == reference.encode()
    assert canonical_json.encode(value, keep_floats=True) == encoded
    canonical_json.check(value, strict=True)


def test_keys_sort_by_code_point_beyond_the_basic_plane() -> None:
    """If this fails, an event with an emoji as a key has a wrong signature (UTF-16 sorts it otherwise)."""
    keys = ["\U0001f600", "\uffff", "\ue000", "\ud7ff", "z", "a", "Z", ""]
    encoded = canonical_json.encode(dict.fromkeys(keys, 1))
    assert list(orjson.loads(encoded)) == sorted(keys)


def test_control_characters_have_their_shortest_escape() -> None:
    """If this fails, a pasted control character makes a message that nobody else can verify."""
    every = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028'
    expected = json.dumps(every, ensure_ascii=False).encode()
    assert canonical_json.encode(every) == expected


@pytest.mark.parametrize(
    ("value", "kept"),
    [(50.0, b"50.0"), (50.57, b"50.57"), (1e16, b"1e+16"), (-0.0, b"-0.0"), (2**70, str(2**70).encode())],
)
def test_old_rooms_keep_numbers_as_they_were_hashed(value: float, kept: bytes) -> None:
    """If this fails, an old room with a float as a power level cannot be joined."""
    assert canonical_json.encode({"ban": value}, keep_floats=True) == b'{"ban":' + kept + b"}"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {"a": [float("-inf")]},
        0.5,
        "\ud800",
        {"\udfff": 1},
        {1: 2, "a": 2**70},
        {1: 2},
        nested(300),
        {"a": b"bytes"},
        {"a": {1, 2}},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    """If this fails, odd input is a 500, or is signed as something else than what it says."""
    with pytest.raises(MatrixError) as error:
        canonical_json.encode(value)
    assert error.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("value", [2**53 - 1, -(2**53) + 1, "2e5", True, None, [], {"a": [{"b": 0}]}])
def test_strict_check_accepts(value: Any) -> None:
    """If this fails, a legal message is refused."""
    canonical_json.check({"body": value}, strict=True)


@pytest.mark.parametrize("value", [2**53, -(2**53), 1.0, 0.5, 1e300, float(2**64)])
def test_numbers_that_only_old_rooms_allow(value: Any) -> None:
    """If this fails, we send what other servers drop, or cannot take part in rooms that have it."""
    with pytest.raises(MatrixError) as error:
        canonical_json.check({"a": [{"b": value}]}, strict=True)
    assert error.value.errcode == "M_BAD_JSON"
    canonical_json.check({"a": [{"b": value}]}, strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), b"", object(), nested(201)])
def test_never_accepted(value: Any, strict: bool) -> None:
    """If this fails, a stranger can store what no client can read, or crash a worker by nesting."""
    with pytest.raises(MatrixError) as error:
        canonical_json.check(value, strict=strict)
    assert error.value.errcode == "M_BAD_JSON"


def test_depth_limit_does_not_recurse() -> None:
    """If this fails, one deeply nested request ends in RecursionError."""
    canonical_json.check(nested(canonical_json.MAX_DEPTH), strict=True)
    assert canonical_json.encode(nested(200)) == b"[" * 200 + b"]" * 200
    for value in (nested(100_000), [1.5, nested(100_000)]):
        with pytest.raises(MatrixError, match="nested deeper"):
            canonical_json.encode(value, keep_floats=True)
