"""Removing what users leave behind besides events: their own data, and what others saw of the erased."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ranvier.storage.erasure import ErasureStore
from ranvier.users.presence_states import OFFLINE

SetPresence = Callable[[str, str | None, str, str | None], Awaitable[None]]
"""Sets a user's presence: user ID, device, presence, status message."""


class Erasure:
    """Remove the data of deactivated users. Doing it again does no harm."""

    def __init__(self, *, store: ErasureStore, set_presence: SetPresence) -> None:
        self._store = store
        self._set_presence = set_presence

    async def say_farewell(self, user_id: str) -> None:
        """Take the status message away, while there still are rooms in which others are told of it."""
        await self._set_presence(user_id, None, OFFLINE, None)

    async def remove(self, user_id: str, *, erase: bool) -> None:
        """Remove account data, push rules, filters, backups and keys; to ``erase``, profile and receipts too.

        "The server should additionally erase any non-event data associated with the user, such as account
        data". What only its owner could read is of no use to anybody once they cannot log in any more, so it
        goes whether they wished to be erased or not. Source: ``POST /account/deactivate``.
        """
        await self._store.remove_own(user_id)
        if erase:
            await self._store.remove_shown(user_id)
