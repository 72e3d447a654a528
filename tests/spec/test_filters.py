"""Filters: which rooms, events and fields a client is given."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec.errors import MatrixError
from ranvier.spec.filters import (
    MAX_FIELDS,
    MAX_GLOBS,
    MAX_LIST,
    NO_FILTER,
    Filter,
    parse_filter,
    parse_room_event_filter,
    to_json,
)

ALICE, BOB = "@alice:x", "@bob:x"
ROOM, OTHER = "!room:x", "!other:x"

EXAMPLE: dict[str, Any] = {
    "room": {
        "state": {"types": ["m.room.*"], "not_rooms": [ROOM]},
        "timeline": {
            "limit": 10,
            "types": ["m.room.message"],
            "not_rooms": [ROOM],
            "not_senders": ["@spam:example.com"],
        },
        "ephemeral": {"types": ["m.receipt", "m.typing"], "not_rooms": [ROOM]},
    },
    "presence": {"types": ["m.presence"], "not_senders": [ALICE]},
    "event_format": "client",
    "event_fields": ["type", "content", "sender"],
}


def test_the_specifications_example() -> None:
    """The filter that the specification shows does what it says."""
    parsed = parse_filter(EXAMPLE)
    assert parsed.room.timeline.limit == 10
    assert parsed.room.timeline.matches("m.room.message", BOB, OTHER)
    assert not parsed.room.timeline.matches("m.room.message", BOB, ROOM)
    assert not parsed.room.timeline.matches("m.room.message", "@spam:example.com", OTHER)
    assert not parsed.room.timeline.matches("m.reaction", BOB, OTHER)
    assert parsed.room.state.matches("m.room.member", BOB, OTHER)
    assert parsed.room.ephemeral.matches("m.typing", None, OTHER)
    assert not parsed.presence.matches("m.presence", ALICE)
    assert parsed.presence.matches("m.presence", BOB)
    assert parsed.account_data.is_everything


def test_no_filter_is_everything() -> None:
    """Without a filter nothing is left out, and nothing is spent on finding that out."""
    assert parse_filter({}) == NO_FILTER
    room = NO_FILTER.room
    assert room.is_every_room
    for events in (room.state, room.timeline, room.ephemeral, room.account_data):
        assert events.is_everything
        assert not events.is_nothing
        assert not events.needs_relations
        assert events.matches("any", None, ROOM)
    assert parse_filter(
        {"room": {"timeline": {"limit": 1, "lazy_load_members": True}}}
    ).room.timeline.is_everything
    assert not NO_FILTER.selects_fields
    assert NO_FILTER.project({"type": "x"}) == {"type": "x"}


MATCHES: list[tuple[dict[str, Any], tuple[str, str | None, str, bool], bool]] = [
    ({"types": ["m.a"]}, ("m.a", BOB, ROOM, False), True),
    ({"types": ["m.a"]}, ("m.ab", BOB, ROOM, False), False),
    ({"types": ["m.*"]}, ("m.ab", BOB, ROOM, False), True),
    ({"types": ["*.b"]}, ("m.ab", BOB, ROOM, False), False),
    ({"types": ["m?a"]}, ("m.a", BOB, ROOM, False), False),
    ({"types": ["M.A"]}, ("m.a", BOB, ROOM, False), False),
    ({"types": []}, ("m.a", BOB, ROOM, False), False),
    ({"types": ["m.a"], "not_types": ["*"]}, ("m.a", BOB, ROOM, False), False),
    ({"not_types": ["m.b*"]}, ("m.a", BOB, ROOM, False), True),
    ({"not_types": []}, ("m.a", BOB, ROOM, False), True),
    ({"senders": [BOB]}, ("m.a", BOB, ROOM, False), True),
    ({"senders": [BOB]}, ("m.a", ALICE, ROOM, False), False),
    ({"senders": [BOB]}, ("m.a", None, ROOM, False), False),
    ({"senders": []}, ("m.a", BOB, ROOM, False), False),
    ({"senders": [BOB], "not_senders": [BOB]}, ("m.a", BOB, ROOM, False), False),
    ({"not_senders": [BOB]}, ("m.a", None, ROOM, False), True),
    ({"rooms": [ROOM]}, ("m.a", BOB, ROOM, False), True),
    ({"rooms": [ROOM]}, ("m.a", BOB, OTHER, False), False),
    ({"rooms": [ROOM], "not_rooms": [ROOM]}, ("m.a", BOB, ROOM, False), False),
    ({"not_rooms": [ROOM]}, ("m.a", BOB, OTHER, False), True),
    ({"contains_url": True}, ("m.a", BOB, ROOM, True), True),
    ({"contains_url": True}, ("m.a", BOB, ROOM, False), False),
    ({"contains_url": False}, ("m.a", BOB, ROOM, True), False),
    ({"contains_url": False}, ("m.a", BOB, ROOM, False), True),
    ({"contains_url": True, "types": ["m.b"]}, ("m.a", BOB, ROOM, True), False),
]


@pytest.mark.parametrize(("definition", "event", "passes"), MATCHES)
def test_matching(definition: dict[str, Any], event: tuple[str, str | None, str, bool], passes: bool) -> None:
    """A client gets exactly the events that its filter lets through."""
    event_type, sender, room_id, has_url = event
    parsed = parse_room_event_filter(definition)
    for _ in range(2):  # outcomes are remembered
        assert parsed.matches(event_type, sender, room_id, has_url=has_url) is passes
    assert not (parsed.is_everything and not passes)
    assert not (parsed.is_nothing and passes)


@pytest.mark.parametrize(
    "definition", [{"rooms": []}, {"types": []}, {"senders": []}, {"not_types": ["a", "*"]}]
)
def test_filters_that_let_nothing_through_are_known(definition: dict[str, Any]) -> None:
    """A client that wants no events of a section does not make the server read them."""
    assert parse_room_event_filter(definition).is_nothing


def test_rooms() -> None:
    """The rooms of a filter hold for all sections."""
    room = parse_filter({"room": {"rooms": [ROOM, OTHER], "not_rooms": [OTHER], "include_leave": True}}).room
    assert room.include_leave
    assert [room.matches_room(it) for it in (ROOM, OTHER, "!third:x")] == [True, False, False]


def test_relations() -> None:
    """A client finds the threads in which somebody took part."""
    parsed = parse_room_event_filter({"related_by_rel_types": ["m.thread"], "related_by_senders": [BOB]})
    assert parsed.needs_relations
    assert parsed.matches_relations([("m.annotation", ALICE), ("m.thread", BOB)])
    assert not parsed.matches_relations([("m.annotation", BOB), ("m.thread", ALICE)])
    assert not parsed.matches_relations([])


EVENT: dict[str, Any] = {
    "type": "m.room.message",
    "sender": BOB,
    "content": {
        "body": "hi",
        "m.relates_to": {"rel_type": "m.thread", "event_id": "$a"},
        "a\\b": 1,
        "empty": {},
    },
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["type", "sender"], {"type": "m.room.message", "sender": BOB}),
        (["content.body"], {"content": {"body": "hi"}}),
        (["content.body", "content"], {"content": EVENT["content"]}),
        (["content", "content.body"], {"content": EVENT["content"]}),
        ([r"content.m\.relates_to.rel_type"], {"content": {"m.relates_to": {"rel_type": "m.thread"}}}),
        ([r"content.a\\b", "content.body"], {"content": {"a\\b": 1, "body": "hi"}}),
        (["content.body.deeper", "type.x", "absent"], {}),
        (["content.empty"], {"content": {"empty": {}}}),
        ([], EVENT),
    ],
)
def test_event_fields(fields: list[str], expected: dict[str, Any]) -> None:
    """A client that asks for some fields gets those, and others get the event whole."""
    before = copy.deepcopy(EVENT)
    assert parse_filter({"event_fields": fields}).project(EVENT) == expected
    assert before == EVENT


BAD: list[tuple[Any, str]] = [
    ([], "M_BAD_JSON"),
    (None, "M_BAD_JSON"),
    ("{}", "M_BAD_JSON"),
    ({"room": []}, "M_BAD_JSON"),
    ({"room": {"timeline": "x"}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"limit": "10"}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"limit": -1}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"limit": True}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"types": "m.a"}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"types": [1]}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"types": ["x" * 256]}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"types": ["a"] * (MAX_LIST + 1)}}}, "M_BAD_JSON"),
    ({"room": {"timeline": {"types": ["a*"] * (MAX_GLOBS + 1)}}}, "M_INVALID_PARAM"),
    ({"room": {"state": {"lazy_load_members": "yes"}}}, "M_BAD_JSON"),
    ({"room": {"include_leave": 1}}, "M_BAD_JSON"),
    ({"event_format": "xml"}, "M_BAD_JSON"),
    ({"event_fields": ["a"] * (MAX_FIELDS + 1)}, "M_BAD_JSON"),
    ({"event_fields": [".".join("a" * 17)]}, "M_INVALID_PARAM"),
    ({"presence": {"senders": ["alice"]}}, "M_INVALID_PARAM"),
    ({"room": {"rooms": ["#alias:x"]}}, "M_INVALID_PARAM"),
    ({"room": {"state": {"not_rooms": ["x"]}}}, "M_INVALID_PARAM"),
]


@pytest.mark.parametrize(("definition", "errcode"), BAD)
def test_wrong_filters(definition: Any, errcode: str) -> None:
    """A wrong filter is refused with the reason, instead of silently giving other events."""
    with pytest.raises(MatrixError) as raised:
        parse_filter(definition)
    assert (raised.value.errcode, raised.value.status) == (errcode, 400)


def test_the_filter_of_messages_is_checked_too() -> None:
    """``/messages`` refuses a wrong filter as ``/sync`` does."""
    definitions: list[Any] = [[], {"limit": "x"}, {"senders": ["x"]}]
    for definition in definitions:
        with pytest.raises(MatrixError):
            parse_room_event_filter(definition)


def test_unknown_keys_are_ignored() -> None:
    """A newer client's filter works as far as it is understood."""
    assert parse_filter({"org.example": 1, "room": {"timeline": {"x": {}}}}) == NO_FILTER


LISTS = st.none() | st.lists(st.text(alphabet="m.a*", max_size=4), max_size=3)
USERS = st.none() | st.lists(st.sampled_from([ALICE, BOB]), max_size=2)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.integers(0, 100),
        "types": LISTS,
        "not_types": LISTS,
        "senders": USERS,
        "not_senders": USERS,
        "contains_url": st.booleans(),
        "lazy_load_members": st.booleans(),
    },
)


@given(EVENTS, EVENTS)
def test_filters_survive_storing(state: dict[str, Any], timeline: dict[str, Any]) -> None:
    """A stored filter is the filter that was sent."""
    parsed = parse_filter({"room": {"state": state, "timeline": timeline, "include_leave": True}})
    again: Filter = parse_filter(to_json(parsed))
    assert again == parsed


@given(EVENTS, st.text(alphabet="m.a", max_size=4), st.sampled_from([ALICE, BOB, None]), st.booleans())
def test_matching_agrees_with_the_definition(
    definition: dict[str, Any], event_type: str, sender: str | None, has_url: bool
) -> None:
    """Fast paths let through what the slow definition lets through."""

    def listed(types: list[str]) -> bool:
        return any(re.fullmatch(re.escape(it).replace(r"\*", ".*"), event_type) for it in types)

    types, senders = definition.get("types"), definition.get("senders")
    expected = (
        (types is None or listed(types))
        and not listed(definition.get("not_types") or [])
        and (senders is None or sender in senders)
        and sender not in (definition.get("not_senders") or [])
        and definition.get("contains_url", has_url) is has_url
    )
    assert parse_room_event_filter(definition).matches(event_type, sender, ROOM, has_url=has_url) is expected
