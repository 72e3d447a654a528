"""History visibility: may this user, or this server, see that event?

Source: client-server API, "Room History Visibility".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

Visibility = Literal["world_readable", "shared", "invited", "joined"]

_VISIBILITIES: Final[Mapping[object, Visibility]] = {
    "world_readable": "world_readable",
    "shared": "shared",
    "invited": "invited",
    "joined": "joined",
}


def visibility_of(content: Mapping[str, Any] | None) -> Visibility:
    """Read the content of ``m.room.history_visibility``, None where the room has no such event.

    "By default if no history_visibility is set, or if the value is not understood, the visibility is
    assumed to be shared."
    """
    value = None if content is None else content.get("history_visibility")
    return _VISIBILITIES.get(value, "shared") if isinstance(value, str) else "shared"


def may_see(
    visibility: Visibility,
    membership: str | None,
    *,
    joined_later: bool,
    visibility_before: Visibility | None = None,
    membership_before: str | None = None,
) -> bool:
    """Tell whether a user may see an event.

    ``visibility`` and ``membership`` (None: never had one) are those at the event, it included if it is
    state; ``joined_later`` says whether the user was joined at any time after it. For an
    ``m.room.history_visibility`` event give also the visibility before it, for the user's own
    ``m.room.member`` event also the membership before it: what either would show is shown.
    """
    if _may_see(visibility, membership, joined_later):
        return True
    # "For m.room.history_visibility events themselves, the user should be allowed to see the event if the
    # history_visibility before or after the event would allow them to see it."
    if visibility_before is not None and _may_see(visibility_before, membership, joined_later):
        return True
    # "Likewise, for the user's own m.room.member events, the user should be allowed to see the event if
    # their membership before or after the event would allow them to see it."
    return membership_before is not None and _may_see(visibility, membership_before, joined_later)


def _may_see(visibility: Visibility, membership: str | None, joined_later: bool) -> bool:
    # 1. If the history_visibility was set to world_readable, allow.
    # 2. If the user's membership was join, allow.
    if visibility == "world_readable" or membership == "join":
        return True
    # 3. If history_visibility was set to shared, and the user joined the room at any point after the event
    #    was sent, allow.
    if visibility == "shared":
        return joined_later
    # 4. If the user's membership was invite, and the history_visibility was set to invited, allow.
    # 5. Otherwise, deny.
    return visibility == "invited" and membership == "invite"


def server_may_see(visibility: Visibility, memberships: Iterable[str | None]) -> bool:
    """Tell whether a server that takes part in the room may have an event.

    ``memberships`` are those of its users at the event. A server with a user in the room gets what that
    user, or one who is yet to join, may see.
    """
    if visibility in ("world_readable", "shared"):
        return True
    seen_by = ("join", "invite") if visibility == "invited" else ("join",)
    return any(membership in seen_by for membership in memberships)
