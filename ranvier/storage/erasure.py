"""What is removed of users who are gone, and who of them wished to be erased."""

from __future__ import annotations

from ranvier.storage.database import Database

_ERASED = "SELECT user_id, erased_pos FROM accounts WHERE erased_pos IS NOT NULL"
# What only its owner ever saw, and the keys by which others knew them: in one statement, all or nothing.
_REMOVE_OWN = """
WITH account_data AS (DELETE FROM account_data WHERE user_id = $1),
    push_rules AS (DELETE FROM push_rules WHERE user_id = $1),
    filters AS (DELETE FROM filters WHERE user_id = $1),
    key_backup_keys AS (DELETE FROM key_backup_keys WHERE user_id = $1),
    key_backups AS (DELETE FROM key_backups WHERE user_id = $1),
    signed_by_others AS (DELETE FROM key_signatures WHERE target_user_id = $1),
    signed AS (DELETE FROM key_signatures WHERE signer_user_id = $1 AND target_user_id <> $1),
    found AS (DELETE FROM user_directory WHERE user_id = $1),
    unread AS (DELETE FROM unread_tallies WHERE user_id = $1),
    cross_signing AS (DELETE FROM cross_signing_keys WHERE user_id = $1)
UPDATE presence SET status_msg = NULL WHERE user_id = $1 AND status_msg IS NOT NULL
"""
# What others saw of them besides events. (Of receipts there is no index by user; of their rooms there is.)
_REMOVE_SHOWN = """
WITH profiles AS (DELETE FROM profiles WHERE user_id = $1),
    profile_changes AS (DELETE FROM profile_changes WHERE user_id = $1),
    presence AS (DELETE FROM presence WHERE user_id = $1)
DELETE FROM receipts WHERE user_id = $1 AND room_id IN (
    SELECT r.room_id FROM current_state s JOIN rooms r USING (room_nid)
    WHERE s.type = 'm.room.member' AND s.state_key = $1)
"""


class ErasureStore:
    """Remove what users leave behind, and know who was erased."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def erased(self) -> dict[str, int]:
        """Give every user who was erased, with the log position of their wish."""
        return {r["user_id"]: r["erased_pos"] for r in await self._database.fetch(_ERASED)}

    async def remove_own(self, user_id: str) -> None:
        """Remove what is a user's own, their keys, and what they said of themselves at the moment."""
        await self._database.execute(_REMOVE_OWN, user_id)

    async def remove_shown(self, user_id: str) -> None:
        """Remove what others saw of a user: profile, receipts, when they were there."""
        await self._database.execute(_REMOVE_SHOWN, user_id)
