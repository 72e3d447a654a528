"""Bodies that no honest client sends: each gets a clear error, none breaks the server."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.http.json_body import MAX_DEPTH, parse
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route
from ranvier.spec.errors import MatrixError


class Shape(msgspec.Struct):
    """A body with a nested field."""

    name: str
    tags: dict[str, int] = {}


async def nothing(request: Request) -> bytes:
    return b"{}"


ROUTE = Route("PUT", "/x", nothing, auth=Auth.NONE)


def request(body: bytes) -> Request:
    return Request("PUT", "/x", ROUTE, body=body)


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b" ", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b'{"a":1}}', "M_NOT_JSON"),
        (b"{'a':1}", "M_NOT_JSON"),
        (b'{"a":01}', "M_NOT_JSON"),
        (b'{"a":NaN}', "M_NOT_JSON"),
        (b'{"a":Infinity}', "M_NOT_JSON"),
        (b'{"a":-Infinity}', "M_NOT_JSON"),
        (b'{"a":"\xff"}', "M_NOT_JSON"),
        (b'{"\xff":1}', "M_NOT_JSON"),
        (b'{"a":"\xed\xa0\x80"}', "M_NOT_JSON"),
        (b'{"a":"\\ud800"}', "M_NOT_JSON"),
        (b'{"a":"\x00"}', "M_NOT_JSON"),
        (b"\xef\xbb\xbf{}", "M_NOT_JSON"),
        ('{"a":1}'.encode("utf-16"), "M_NOT_JSON"),
        (b'{"a":1e999}', "M_BAD_JSON"),
        (b'{"a":18446744073709551616}', "M_BAD_JSON"),
        (b'{"a":-9223372036854775809}', "M_BAD_JSON"),
        (b'{"a":1' + b"0" * 5000 + b"}", "M_BAD_JSON"),
        (b'{"a":1,"a":2}', "M_BAD_JSON"),
        (b'{"a":1,"a" : 2}', "M_BAD_JSON"),
        (b'{"a":1,"\\u0061":2}', "M_BAD_JSON"),
        (b'{"a":1,"a":2,"b":"\\u003a"}', "M_BAD_JSON"),
        (b'{"a":1,"a":2,"b":"\\u003A\\u003a"}', "M_BAD_JSON"),
        (b'{"x":[{"y":{"a":1,"a":1}}]}', "M_BAD_JSON"),
        (b"[" * 100_000, "M_BAD_JSON"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "M_BAD_JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"null", "M_BAD_JSON"),
        (b'"text"', "M_BAD_JSON"),
        (b'{"a":[{"b":"x\\u0000y"}]}', "M_BAD_JSON"),
        (b'{"a":{"\\u0000":1}}', "M_BAD_JSON"),
        (b'{"a":"\\\\\\u0000"}', "M_BAD_JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_bodies(body: bytes, errcode: str) -> None:
    """A crafted body would be a failure of the server, or be read differently by two servers."""
    with pytest.raises(MatrixError) as caught:
        request(body).json_object()
    assert (caught.value.errcode, caught.value.status) == (errcode, 400)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' { "a" : [ 1 , { "b" : ":" } ] } ',
        b'{"a":":\\":","b":"\\u003a"}',
        b'{"\\u003a":1,":b":2}',
        b'{"a":"\\\\u0000"}',
        b'{"a":18446744073709551615,"b":-9223372036854775808,"c":1.5,"d":-0}',
        b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b'{"a":[' + b",".join([b"{}"] * 1000) + b"]}",
        '{"é":"\U0001f600","😀":"\\ud83d\\ude00"}'.encode(),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_but_honest_bodies(body: bytes) -> None:
    """A client that writes JSON in its own way would be refused."""
    assert parse(body) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{}", "name"),
        (b'{"name":5}', "$.name"),
        (b'{"name":"x","tags":{"a":"b"}}', "$.tags"),
        (b"[]", "object"),
    ],
)
def test_the_message_names_the_field(body: bytes, word: str) -> None:
    """The author of a client could not find the mistake."""
    with pytest.raises(MatrixError) as caught:
        request(body).json(Shape)
    assert caught.value.errcode == "M_BAD_JSON"
    assert word in caught.value.message


def test_an_empty_body_may_count_as_an_object() -> None:
    """Clients that leave out a body that says nothing could not join or leave."""
    assert request(b"").json_object(allow_empty=True) == {}
    with pytest.raises(MatrixError):
        request(b"").json(Shape, allow_empty=True)


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Some body would be a 500."""
    with contextlib.suppress(MatrixError):
        assert parse(body) == json.loads(body)


_KEYS = st.text(':"\\a{', max_size=3)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=30,
)


@given(_VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_any_json(value: Any, ascii_only: bool, indent: int | None) -> None:
    """Some honest body would be refused."""
    assert parse(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=4), st.booleans(), st.data())
def test_any_duplicate(value: dict[str, Any], ascii_only: bool, data: st.DataObject) -> None:
    """Two readers of one event would see different things."""
    twice = data.draw(st.sampled_from(sorted(value)))
    fields = [*value.items(), (twice, data.draw(_VALUES))]
    body = ", ".join(f"{json.dumps(k, ensure_ascii=ascii_only)}: {json.dumps(v)}" for k, v in fields)
    # An escaped colon in a string must not hide the colon of the lost key.
    with pytest.raises(MatrixError):
        parse(("[{" + body + '}, "\\u003a"]').encode())
    with pytest.raises(MatrixError):
        parse(("{" + body + "}").encode())
