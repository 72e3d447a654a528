"""OpenID tokens: prove to somebody else, such as an integration manager, who one is."""

from __future__ import annotations

from ranvier.log.clock import Clock
from ranvier.storage.access_tokens import ShortLivedTokenStore
from ranvier.users.access_tokens import OPENID, is_well_formed, new_token, token_hash

LIFETIME_MS = 3_600_000


class OpenIdTokens:
    """Give out tokens and tell whose they are. Source: client-server API, "OpenID"."""

    def __init__(self, *, store: ShortLivedTokenStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def issue(self, user_id: str) -> tuple[str, int]:
        """Give a token for a user, and its lifetime in seconds."""
        token = new_token(OPENID, user_id)
        await self._store.keep(token_hash(token), user_id, self._clock.now_ms() + LIFETIME_MS)
        return token, LIFETIME_MS // 1000

    async def user_of(self, token: str) -> str | None:
        """Give the user of a token, None if it is not known or has expired."""
        if not is_well_formed(OPENID, token):
            return None
        return await self._store.read(token_hash(token), self._clock.now_ms())
