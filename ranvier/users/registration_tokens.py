"""Registration tokens: who was given one may register."""

from __future__ import annotations

import secrets
from typing import Any

from ranvier.log.clock import Clock
from ranvier.spec.errors import invalid_param
from ranvier.spec.ids import is_opaque_id
from ranvier.storage.registration_tokens import RegistrationToken, RegistrationTokenStore
from ranvier.storage.uia_sessions import UiaSessionStore

MAX_TOKEN_LENGTH = 64


class RegistrationTokens:
    """Make tokens and tell which are valid.

    A use counts as taken from when its stage is passed until the account is made, for at most
    ``session_timeout_ms``.
    """

    def __init__(
        self,
        *,
        store: RegistrationTokenStore,
        sessions: UiaSessionStore,
        clock: Clock,
        session_timeout_ms: int,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._session_timeout_ms = session_timeout_ms

    async def is_valid(self, token: Any) -> bool:
        """Tell whether one more account may be made with a token now."""
        if not is_opaque_id(token) or len(token) > MAX_TOKEN_LENGTH:
            return False
        found = await self._store.get(token)
        now = self._clock.now_ms()
        if found is None or (found.expires_ts is not None and found.expires_ts <= now):
            return False
        if found.uses_allowed is None:
            return True
        return found.completed + await self.pending(token) < found.uses_allowed

    async def pending(self, token: str) -> int:
        """Count the registrations under way that passed with a token."""
        return await self._sessions.pending(token, self._clock.now_ms() - self._session_timeout_ms)

    async def create(
        self, token: str | None = None, *, uses_allowed: int | None = None, expires_ts: int | None = None
    ) -> RegistrationToken:
        """Make a token, of a random text if none is given. Raises ``M_INVALID_PARAM``."""
        text = secrets.token_urlsafe(12) if token is None else token
        if not is_opaque_id(text) or len(text) > MAX_TOKEN_LENGTH:
            raise invalid_param(f"A token has 1 to {MAX_TOKEN_LENGTH} characters of A-Z, a-z, 0-9 and ._~-")
        if uses_allowed is not None and not 0 <= uses_allowed < 2**31:
            raise invalid_param("uses_allowed is out of range")
        if not await self._store.create(text, uses_allowed, expires_ts):
            raise invalid_param("There is a token of this text already")
        return RegistrationToken(token=text, uses_allowed=uses_allowed, completed=0, expires_ts=expires_ts)
