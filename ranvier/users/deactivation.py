"""Deactivation: an account that ends, its sessions and its rooms with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ranvier.spec.errors import MatrixError
from ranvier.storage.accounts import AccountStore
from ranvier.users.accounts import Accounts
from ranvier.users.login import Sessions

logger = logging.getLogger(__name__)

RETRY_INTERVAL_S = 300.0
_AT_ONCE = 100

Depart = Callable[[str, bool], Awaitable[None]]
"""Called with the user ID and whether to erase: leaves all rooms, refuses invites, removes the user's data.
May be called again for the same user after a crash. A MatrixError says that it is to be tried again."""


class Deactivation:
    """Deactivate accounts at once, and let them leave their rooms in the background, across restarts."""

    def __init__(
        self,
        *,
        store: AccountStore,
        accounts: Accounts,
        sessions: Sessions,
        depart: Depart,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._sessions = sessions
        self._depart = depart
        self._wake = asyncio.Event()
        self._wake.set()  # what an earlier run of the server did not finish

    async def deactivate(self, user_id: str, *, erase: bool) -> None:
        """End an account: no password, no sessions; it leaves its rooms soon after."""
        if erase:
            await self._accounts.change(user_id, deactivated=True, departing=True, erased=True)
        else:
            await self._accounts.change(user_id, deactivated=True, departing=True)
        self._wake.set()  # whatever comes next: the background goes on with it
        await self._sessions.end_all(user_id)

    async def run(self) -> None:
        """Let deactivated users leave their rooms, for ever."""
        while True:
            try:
                async with asyncio.timeout(RETRY_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                while await self._depart_some():
                    pass
            except MatrixError as error:
                logger.warning("Deactivated users can not leave their rooms now: %s", error.message)

    async def _depart_some(self) -> bool:
        """Let some users leave; True if there may be more."""
        users = await self._store.departing(_AT_ONCE)
        done = 0
        for user_id, erase in users:
            try:
                # Again, for a server that stopped in between: devices have names, and addresses they were at.
                await self._sessions.end_all(user_id)
                await self._depart(user_id, erase)
            except MatrixError as error:
                logger.warning("%s could not leave all rooms: %s", user_id, error.message)
                continue
            except Exception:
                # One user or room that cannot be worked with must not end the server; it is tried again.
                logger.exception("Letting %s leave all rooms failed", user_id)
                continue
            await self._accounts.change(user_id, departing=False)
            done += 1
        return done == _AT_ONCE
