"""Power levels as tables: what each form of a level means in each room version."""

from __future__ import annotations

from typing import Any

import pytest

from ranvier.spec.power_levels import PowerLevels, parse_level
from ranvier.spec.room_versions import ROOM_VERSIONS
from tests.spec.dag import make_event


def levels(version: str, content: dict[str, Any] | None, **create: Any) -> PowerLevels:
    rules = ROOM_VERSIONS[version]
    if rules.creator_in_content:
        create["creator"] = "@alice:hs"
    create_event = make_event(rules, "create", "alice", "m.room.create", create, state_key="")
    event = None
    if content is not None:
        event = make_event(rules, "pl", "alice", "m.room.power_levels", content, state_key="")
    return PowerLevels.of(event, create_event)


@pytest.mark.parametrize(
    ("value", "v1", "v6", "v10"),
    [
        (50, 50, 50, 50),
        (-5, -5, -5, -5),
        ("100", 100, 100, None),
        ("000100", 100, 100, None),
        ("+100", 100, 100, None),
        ("-100", -100, -100, None),
        (" 100 ", 100, 100, None),
        (" +00100 ", 100, 100, None),
        ("1 00", None, None, None),
        ("--1", None, None, None),
        ("1_0", None, None, None),
        ("50.5", None, None, None),
        ("", None, None, None),
        ("٣", None, None, None),
        ("9" * 5000, None, None, None),
        (50.57, 50, None, None),
        (-50.57, -50, None, None),
        (5.114698e4, 51146, None, None),
        (float("inf"), None, None, None),
        (float("nan"), None, None, None),
        (True, None, None, None),
        (None, None, None, None),
        ([50], None, None, None),
        ({}, None, None, None),
    ],
)
def test_forms_of_a_level(value: object, v1: int | None, v6: int | None, v10: int | None) -> None:
    """Were a form misread, a moderator of an old room would have no power here, or a stranger all of it."""
    read = [parse_level(value, ROOM_VERSIONS[version]) for version in ("1", "6", "10")]
    assert read == [v1, v6, v10]


@pytest.mark.parametrize("version", ["1", "9", "11", "12"])
def test_defaults(version: str) -> None:
    """Were a default wrong, users could do what the room does not allow, or could not kick or invite."""
    for view in (levels(version, {}), levels(version, None)):
        assert (view.users_default, view.events_default, view.state_default) == (0, 0, 50)
        assert (view.ban, view.kick, view.redact, view.invite) == (50, 50, 50, 0)
        assert view.event_level("m.room.message", False) == 0
        assert view.event_level("m.room.topic", True) == 50
        assert view.notification_level("room") == 50
        assert view.user_level("@bob:hs") == 0


@pytest.mark.parametrize(
    ("version", "without_event", "with_event"),
    [("1", 100, 0), ("10", 100, 0), ("11", 100, 0), ("12", PowerLevels.INFINITE, PowerLevels.INFINITE)],
)
def test_creator(version: str, without_event: int, with_event: int) -> None:
    """Were the creator's level wrong, nobody could set up a new room."""
    assert levels(version, None).user_level("@alice:hs") == without_event
    assert levels(version, {}).user_level("@alice:hs") == with_event


def test_creator_of_old_rooms_is_named_in_content() -> None:
    """Were the sender taken for it, a room that was made for somebody else would have no administrator."""
    rules = ROOM_VERSIONS["10"]
    create = make_event(rules, "create", "alice", "m.room.create", {"creator": "@bob:hs"}, state_key="")
    view = PowerLevels.of(None, create)
    assert (view.user_level("@bob:hs"), view.user_level("@alice:hs")) == (100, 0)


def test_additional_creators() -> None:
    """Were they not privileged, the second owner of a version 12 room would have no power in it."""
    view = levels("12", {"users_default": 5}, additional_creators=["@bob:hs"])
    assert view.user_level("@bob:hs") == PowerLevels.INFINITE
    assert view.user_level("@carol:hs") == 5
    assert levels("11", None, additional_creators=["@bob:hs"]).user_level("@bob:hs") == 0
    assert PowerLevels.INFINITE > 2**53


def test_stated_levels() -> None:
    """Were a stated level not read, the room's own settings would mean nothing."""
    view = levels(
        "11",
        {
            "users": {"@bob:hs": 30},
            "events": {"m.room.topic": 7, "m.room.message": 8},
            "notifications": {"room": 9, "other": 3},
            "users_default": 1,
            "events_default": 2,
            "state_default": 3,
            "ban": 4,
            "kick": 5,
            "redact": 6,
            "invite": 7,
        },
    )
    assert (view.user_level("@bob:hs"), view.user_level("@carol:hs")) == (30, 1)
    assert (view.event_level("m.room.topic", True), view.event_level("m.room.message", False)) == (7, 8)
    assert (view.event_level("a", False), view.event_level("a", True)) == (2, 3)
    assert (view.ban, view.kick, view.redact, view.invite) == (4, 5, 6, 7)
    assert (view.notification_level("room"), view.notification_level("other")) == (9, 3)


def test_odd_contents_count_as_absent() -> None:
    """Were an odd content to raise, one event would make a room answer nothing but errors."""
    view = levels("5", {"users": [], "events": 5, "notifications": None, "ban": {}, "users_default": "x"})
    assert (view.user_level("@alice:hs"), view.event_level("a", True), view.ban) == (0, 50, 50)
