"""Something known of a user, in memory for active users and forgotten when the log tells of a change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ranvier.log.tail import Tail
from ranvier.wire.log_rows import LogRow, Row

T = TypeVar("T")


class FollowedByUser(Generic[T]):
    """Hold what ``load`` gives for a user until a row ``concerns`` it. Bounded by ``max_users``."""

    def __init__(
        self,
        *,
        tail: Tail,
        concerns: Callable[[LogRow], bool],
        load: Callable[[str], Awaitable[T]],
        max_users: int = 10_000,
    ) -> None:
        self._concerns = concerns
        self._load = load
        self._max_users = max_users
        self._known: OrderedDict[str, T] = OrderedDict()
        self._changes = 0
        tail.listen(self._apply, changes=True)

    async def of(self, user_id: str) -> T:
        """Give what is true of a user as of the log's position in this process, or a little later."""
        if user_id in self._known:
            self._known.move_to_end(user_id)
            return self._known[user_id]
        changes = self._changes
        value = await self._load(user_id)
        # A change that came meanwhile may not be in what was read: then it is not kept.
        # Nor is nothing: it may come to be without a row that says so.
        if value is not None and changes == self._changes:
            self._known[user_id] = value
            if len(self._known) > self._max_users:
                self._known.popitem(last=False)
        return value

    def held(self, user_id: str) -> T | None:
        """Give what is known of a user if that is in memory."""
        value = self._known.get(user_id)
        if value is not None:
            self._known.move_to_end(user_id)
        return value

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, LogRow) and row.user_id is not None and self._concerns(row):
                self._changes += 1
                self._known.pop(row.user_id, None)
