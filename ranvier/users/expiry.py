"""Tokens and sessions whose time is over leave the database now and then."""

from __future__ import annotations

import asyncio
import logging

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.storage.access_tokens import AccessTokenStore, ShortLivedTokenStore
from ranvier.storage.uia_sessions import UiaSessionStore
from ranvier.users.uia import SESSION_TIMEOUT_MS

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 600.0
# A client whose session ended is told to keep its keys (soft logout) only as long as its token is known.
KEEP_ENDED_MS = 90 * 86_400_000


class Expiry:
    """Remove what nobody can use any more. Harmless if several processes do it."""

    def __init__(
        self,
        *,
        sessions: UiaSessionStore,
        tokens: AccessTokenStore,
        short_lived_tokens: ShortLivedTokenStore,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._short_lived_tokens = short_lived_tokens
        self._clock = clock

    async def sweep(self) -> None:
        """Remove what has expired by now."""
        now = self._clock.now_ms()
        for sweep, before in (
            (self._sessions.sweep, now - SESSION_TIMEOUT_MS),
            (self._short_lived_tokens.sweep, now),
            (self._tokens.sweep, now - KEEP_ENDED_MS),
        ):
            try:
                await sweep(before)
            except MatrixError as error:
                logger.warning("Can not remove what has expired: %s", error.message)
            except Exception:
                # The other tables must not fill for it.
                logger.exception("Can not remove what has expired")

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            await self.sweep()
