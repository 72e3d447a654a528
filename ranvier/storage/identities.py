"""Identities at providers and the accounts that are theirs, and the key of logins, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ranvier.storage.database import Database

_GET: Final = "SELECT user_id FROM identities WHERE provider = $1 AND subject = $2"
_LINK: Final = """
INSERT INTO identities (provider, subject, user_id)
SELECT $1, $2, user_id FROM accounts WHERE user_id = $3 AND NOT deactivated AND NOT is_guest
ON CONFLICT DO NOTHING
"""
_PROVIDERS: Final = "SELECT provider FROM identities WHERE user_id = $1 AND provider = ANY ($2)"
# Of several workers that begin at once, all get the key of the first.
_KEY: Final = "UPDATE server SET sso_key = coalesce(sso_key, $1) RETURNING sso_key"


class IdentityStore:
    """Read the table ``identities``, and link accounts that are there: new ones are made with their link."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, provider: str, subject: str) -> str | None:
        """Give the account of an identity."""
        user_id: str | None = await self._database.fetchval(_GET, provider, subject)
        return user_id

    async def link(self, provider: str, subject: str, user_id: str) -> None:
        """Give an identity an account in use, unless either of both has another already."""
        await self._database.execute(_LINK, provider, subject, user_id)

    async def providers_of(self, user_id: str, among: Sequence[str]) -> list[str]:
        """Give those of some providers by which a user logs in."""
        return [record["provider"] for record in await self._database.fetch(_PROVIDERS, user_id, list(among))]


async def shared_key(database: Database, own: bytes) -> bytes:
    """Give the key that all workers of the server use: ``own`` if there was none before."""
    async with database.connection() as connection:
        key: bytes = await connection.fetchval(_KEY, own)
    return key
