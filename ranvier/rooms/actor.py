"""Who acts in a room, as far as rooms must know: the part of a requester that they look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol


class Actor(Protocol):
    """Name a user who acts, and what is known of their account; ``users.requester.Requester`` is one."""

    @property
    def user_id(self) -> str:
        """The user's id."""

    @property
    def is_guest(self) -> bool:
        """Whether the account is a guest's."""

    @property
    def is_admin(self) -> bool:
        """Whether the user administrates the server."""

    @property
    def rate_limited(self) -> bool:
        """Whether rate limits count for the user."""

    def require_unsuspended(self) -> None:
        """Refuse a suspended account (403 ``M_USER_SUSPENDED``)."""


ProfileOf = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Gives a user's profile: ``displayname`` and ``avatar_url`` where they are set."""

InvitesBlocked = Callable[[str], Awaitable[bool]]
"""Tells whether a user of ours takes no invitations (account data ``m.invite_permission_config``)."""

Limit = Callable[[str, str], None]
"""Counts an action under a limit's name and a key. Raises 429 ``M_LIMIT_EXCEEDED``."""
