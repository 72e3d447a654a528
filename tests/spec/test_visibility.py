"""History visibility as a table."""

from __future__ import annotations

from typing import Any

import pytest

from ranvier.spec.visibility import Visibility, may_see, server_may_see, visibility_of


@pytest.mark.parametrize(
    ("visibility", "membership", "now", "later"),
    [
        ("world_readable", None, True, True),
        ("world_readable", "ban", True, True),
        ("world_readable", "join", True, True),
        ("shared", "join", True, True),
        ("shared", "invite", False, True),
        ("shared", "leave", False, True),
        ("shared", "knock", False, True),
        ("shared", None, False, True),
        ("invited", "join", True, True),
        ("invited", "invite", True, True),
        ("invited", "leave", False, False),
        ("invited", "knock", False, False),
        ("invited", None, False, False),
        ("joined", "join", True, True),
        ("joined", "invite", False, False),
        ("joined", "leave", False, False),
        ("joined", "ban", False, False),
        ("joined", None, False, False),
    ],
)
def test_table(visibility: Visibility, membership: str | None, now: bool, later: bool) -> None:
    """Were a row wrong, somebody would read what was said without him, or miss what was said to him."""
    assert may_see(visibility, membership, joined_later=False) == now
    assert may_see(visibility, membership, joined_later=True) == later


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ("world_readable", "joined", True),
        ("joined", "world_readable", True),
        ("joined", "invited", False),
        ("shared", "joined", False),
    ],
)
def test_change_of_visibility_itself(before: Visibility, after: Visibility, seen: bool) -> None:
    """Were it hidden, a reader would not learn that the history is open to him, or no longer is."""
    assert may_see(after, None, joined_later=False, visibility_before=before) == seen


@pytest.mark.parametrize(
    ("visibility", "before", "after", "seen"),
    [
        ("joined", None, "join", True),
        ("joined", "join", "leave", True),
        ("joined", "join", "ban", True),
        ("joined", "invite", "leave", False),
        ("invited", "invite", "leave", True),
        ("invited", None, "invite", True),
        ("invited", "leave", "ban", False),
    ],
)
def test_own_membership_events(visibility: Visibility, before: str | None, after: str, seen: bool) -> None:
    """Were it hidden, a user would not see that he was removed from a room."""
    assert may_see(visibility, after, joined_later=False, membership_before=before) == seen


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "shared"),
        ({}, "shared"),
        ({"history_visibility": "secret"}, "shared"),
        ({"history_visibility": 5}, "shared"),
        ({"history_visibility": ["joined"]}, "shared"),
        ({"history_visibility": "joined"}, "joined"),
        ({"history_visibility": "invited"}, "invited"),
        ({"history_visibility": "shared"}, "shared"),
        ({"history_visibility": "world_readable"}, "world_readable"),
    ],
)
def test_reading_the_setting(content: dict[str, Any] | None, expected: str) -> None:
    """Were an odd setting taken for an open one, strangers could read the room."""
    assert visibility_of(content) == expected


@pytest.mark.parametrize(
    ("visibility", "memberships", "seen"),
    [
        ("world_readable", [], True),
        ("shared", [], True),
        ("invited", ["leave", "invite"], True),
        ("invited", ["leave", None], False),
        ("joined", ["invite"], False),
        ("joined", ["invite", "join"], True),
    ],
)
def test_servers(visibility: Visibility, memberships: list[str | None], seen: bool) -> None:
    """Were it wrong, another server's users would see history of before they came, or have gaps in theirs."""
    assert server_may_see(visibility, memberships) == seen
