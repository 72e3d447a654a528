"""What every section of a sync answer is given, and the forms that sections have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ranvier.spec.filters import Filter
from ranvier.wire.tokens import Token


@dataclass(frozen=True, slots=True)
class SyncContext:
    """Say for whom, and from where to where, an answer is made.

    ``since`` is None for an initial sync. An answer tells everything up to ``upto`` and nothing after it:
    ``upto`` is the tail's position when the answer was begun. ``joined`` are the rooms that the user is
    joined to at ``upto``, ``newly_joined`` those of them that ``since`` does not know (their subsections
    are asked with ``initial``), ``left`` the rooms that the user left after ``since``. ``in_tail`` tells
    that all rows after ``since`` are in the tail, so that a section must not ask the database for them.
    """

    user_id: str
    device_id: str | None
    filter: Filter
    since: Token | None
    upto: Token
    joined: Sequence[str]
    newly_joined: frozenset[str]
    left: frozenset[str]
    in_tail: bool
    full_state: bool = False


class UserSection(Protocol):
    """One top-level key of the answer.

    Both give the JSON value of the key, ready made, or None where there is nothing to tell.
    """

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give everything."""

    async def since(self, context: SyncContext) -> bytes | None:
        """Give what came after ``context.since``."""


RoomParts = Mapping[str, list[bytes]]
"""By room id: JSON values, ready made (each an event object)."""


class RoomSection(Protocol):
    """A list of events within each joined room (``ephemeral``, ``account_data``): all rooms in one call."""

    async def initial(self, context: SyncContext, room_ids: Sequence[str]) -> RoomParts:
        """Give everything for these rooms."""

    async def since(self, context: SyncContext) -> RoomParts:
        """Give what came after ``context.since`` in ``context.joined``, by room that has something."""


class UnreadCounts(Protocol):
    """How much of a room a user has not read."""

    def parts(self, *, threads: bool) -> list[bytes]:
        """Give ``"unread_notifications":…`` and, with ``threads``, ``"unread_thread_notifications":…``."""


class UnreadSection(Protocol):
    """The unread counts of joined rooms."""

    async def initial(self, context: SyncContext, room_ids: Sequence[str]) -> Mapping[str, UnreadCounts]:
        """Give the counts of all these rooms."""

    async def since(self, context: SyncContext, room_ids: Sequence[str]) -> Mapping[str, UnreadCounts]:
        """Give the counts of those of these rooms, in which something happened, that may have changed."""
