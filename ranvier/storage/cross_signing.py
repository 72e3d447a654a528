"""Cross-signing keys, and the signatures that users add to keys; both are written through the log."""

from __future__ import annotations

from collections.abc import Sequence

from ranvier.storage.database import Database
from ranvier.storage.device_keys import CrossSigningKey, KeySignature

_OF_USERS = "SELECT user_id, usage, public_key, key FROM cross_signing_keys WHERE user_id = ANY ($1)"
_DEVICES_CALLED = "SELECT device_id FROM devices WHERE user_id = $1 AND device_id = ANY ($2)"
_DEVICE_KEYS = "SELECT device_id, keys FROM device_keys WHERE user_id = $1"
_SIGNED_BY = """
SELECT target_user_id, target_id, signer_user_id, signer_key_id, signature
FROM key_signatures WHERE target_user_id = ANY ($2) AND signer_user_id = $1
"""


class CrossSigningStore:
    """Read ``cross_signing_keys`` and ``key_signatures``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_users(self, user_ids: Sequence[str]) -> dict[tuple[str, str], CrossSigningKey]:
        """Give the cross-signing keys of some users by ``(user_id, usage)``."""
        records = await self._database.fetch(_OF_USERS, user_ids)
        return {(r["user_id"], r["usage"]): CrossSigningKey(*r) for r in records}

    async def devices_called(self, user_id: str, names: Sequence[str]) -> list[str]:
        """Give those of ``names`` that are device ids of a user."""
        records = await self._database.fetch(_DEVICES_CALLED, user_id, names)
        return [record["device_id"] for record in records]

    async def device_keys(self, user_id: str) -> dict[str, bytes]:
        """Give the identity keys of a user's devices, JSON, by device id."""
        return {r["device_id"]: r["keys"] for r in await self._database.fetch(_DEVICE_KEYS, user_id)}

    async def signed_by(self, signer: str, target_user_ids: Sequence[str]) -> set[KeySignature]:
        """Give the signatures that a user added to keys of some users."""
        records = await self._database.fetch(_SIGNED_BY, signer, target_user_ids)
        return {KeySignature(*record) for record in records}
