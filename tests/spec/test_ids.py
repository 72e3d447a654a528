"""Identifiers: what is accepted from others, what we make, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import ids
from ranvier.spec.errors import MatrixError

HASH = "31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM"


def long_id(sigil: str, length: int) -> str:
    return sigil + "a" * (length - 3) + ":b"


@pytest.mark.parametrize(
    "name",
    [
        "matrix.org",
        "matrix.org:8888",
        "1.2.3.4",
        "1.2.3.4:1234",
        "[1234:5678::abcd]",
        "[1234:5678::abcd]:5678",
        "localhost",
        "MATRIX.org",
        "1.2.3.4.example.org",
        "3com",
        "a" * 255,
    ],
)
def test_server_names(name: str) -> None:
    """If this fails, users of such a server cannot be invited."""
    assert ids.check_server_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":8448",
        "a:",
        "a:123456",
        "a:b",
        "a_b.org",
        "a b",
        "ä.org",
        "a.org\n",
        "a.org:１",
        "[::1",
        "[::g]",
        "[1:2:3]",
        "[1.2.3.4]",
        "256.1.1.1",
        "a/b",
        "a@b",
        "a" * 256,
        None,
        5,
    ],
)
def test_bad_server_names(name: Any) -> None:
    """If this fails, a stranger can make us connect to, or sign for, what is no server."""
    with pytest.raises(MatrixError) as error:
        ids.check_server_name(name)
    assert error.value.errcode == "M_INVALID_PARAM"


ACCEPTED: list[tuple[Callable[[Any], str], list[str]]] = [
    (
        ids.check_user_id,
        ["@alice:example.org", "@:example.org", "@UPPER case\n:a:80", "@日本:a", "@a:[::1]:8448"],
    ),
    (
        ids.check_room_id,
        ["!abc:example.org", "!" + HASH, "!ö\x01:a:1", "!" + "a" * 43 + ":b", long_id("!", 255)],
    ),
    (ids.check_room_alias, ["#room:example.org", "#räum mit platz:a"]),
    (ids.check_event_id, ["$" + HASH, "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", "$1:a.org", "$x"]),
    (ids.check_event_type, ["m.room.message", "", "ä" * 127]),
    (ids.check_state_key, ["", "@a:b", "x" * 255]),
]

REFUSED: list[tuple[Callable[[Any], str], list[Any]]] = [
    (
        ids.check_user_id,
        ["alice", "@alice", "alice:a", "@a:", "@a\0:b", "@a:b c", "#a:b", "", None, ["@a:b"]],
    ),
    (ids.check_user_id, [long_id("@", 256), "@" + "ä" * 127 + ":a", "@\ud800:a"]),
    (ids.check_room_id, ["!", "!:a", "!short", "!" + HASH + "a", "!" + HASH[:-1] + "/", "@a:b", "!a\0:b", 1]),
    (ids.check_room_id, [long_id("!", 256), "!" + HASH + "\n"]),
    (ids.check_room_alias, ["#a", "#:a", "!a:b", "#a:b:c", {}, long_id("#", 256)]),
    (ids.check_event_id, ["$", "abc", "$a\0", "$" + "a" * 255, "$\ud800", None]),
    (ids.check_event_type, ["x" * 256, "ä" * 128, None, 1]),
    (ids.check_state_key, ["x" * 256, "日" * 86, None]),
]


@pytest.mark.parametrize(("check", "value"), [(check, v) for check, good in ACCEPTED for v in good])
def test_accepted(check: Callable[[Any], str], value: str) -> None:
    """If this fails, a room, user or event that other servers know is refused here."""
    assert check(value) == value


@pytest.mark.parametrize(("check", "value"), [(check, v) for check, bad in REFUSED for v in bad])
def test_refused(check: Callable[[Any], str], value: Any) -> None:
    """If this fails, an impossible ID gets past the door and fails somewhere behind it."""
    with pytest.raises(MatrixError) as error:
        check(value)
    assert (error.value.errcode, error.value.status) == ("M_INVALID_PARAM", 400)


def test_parts() -> None:
    """If this fails, events are sent to the wrong servers."""
    assert ids.domain_of("@alice:example.org:8448") == "example.org:8448"
    assert ids.domain_of("!r:[::1]:80") == "[::1]:80"
    assert ids.localpart_of("@alice:example.org:8448") == "alice"
    assert ids.localpart_of("!" + HASH) == HASH
    with pytest.raises(MatrixError):
        ids.domain_of("!" + HASH)


@pytest.mark.parametrize("localpart", ["alice", "a.b_c=d-e/f+g", "0"])
def test_new_localparts(localpart: str) -> None:
    """If this fails, a legal user name cannot be registered."""
    assert ids.check_new_localpart(localpart, "a.org") == localpart


@pytest.mark.parametrize("localpart", ["", "Alice", "a b", "ä", "a:b", "a\n", "a" * 249, None])
def test_bad_new_localparts(localpart: Any) -> None:
    """If this fails, somebody registers a name that other servers refuse, or that imitates another."""
    with pytest.raises(MatrixError) as error:
        ids.check_new_localpart(localpart, "a.org")
    assert error.value.errcode == "M_INVALID_USERNAME"


def test_compliant_user_ids() -> None:
    """If this fails, clients are shown user IDs that they cannot handle."""
    assert ids.is_compliant_user_id("@UPPER!:a")
    for odd in ("@:a", "@a b:a", "@ä:a", "nobody"):
        assert not ids.is_compliant_user_id(odd)


def test_opaque_ids() -> None:
    """If this fails, backup versions and device names of the right form are refused."""
    assert ids.is_opaque_id("aZ09-._~")
    for odd in ("", "a b", "a/b", "a" * 256, "a\n", None):
        assert not ids.is_opaque_id(odd)


def test_hash_room_ids() -> None:
    """If this fails, rooms of version 12 are not told from older ones."""
    assert ids.is_hash_room_id("!" + HASH)
    assert not ids.is_hash_room_id("!" + HASH + ":a.org")


def test_new_ids_are_valid() -> None:
    """If this fails, rooms that we create cannot be joined from elsewhere."""
    assert ids.check_room_id(ids.new_room_id("a.org:1", "Ab0")) == "!Ab0:a.org:1"
    assert ids.check_event_id(ids.new_event_id("a.org", "Ab0")) == "$Ab0:a.org"
    assert ids.check_room_id(ids.room_id_of_create("$" + HASH)) == "!" + HASH


@given(st.text())
def test_any_text_gets_an_answer(text: str) -> None:
    """If this fails, some string in a request is a 500."""
    for check in (ids.is_user_id, ids.is_room_id, ids.is_room_alias, ids.is_event_id, ids.is_server_name):
        for candidate in (text, "@" + text, "!" + text + ":a", "$" + text):
            assert check(candidate) in (True, False)
