"""Access tokens, refresh tokens and short-lived tokens in PostgreSQL, all by their hashes."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ranvier.storage.database import Connection, Database

_LOAD = """
SELECT t.token_id, t.user_id, t.device_id, t.expires_ts, t.replaces, a.is_guest, a.is_admin, a.locked,
       a.suspended, a.shadow_banned, a.rate_limited, a.appservice_id
FROM access_tokens t JOIN accounts a USING (user_id) WHERE t.token_hash = $1 AND NOT a.deactivated
"""
# Whoever deletes the device or changes the password at this moment waits for these tokens, and finds them;
# or they are not made. Who begins a session on the same device waits, too: one of the two finds the other's.
# The account is locked before the device, as a batch of the log does.
_INSERT = """
WITH account AS (
    SELECT true FROM accounts
    WHERE user_id = $2 AND NOT deactivated AND ($10::text IS NULL OR coalesce(password_hash, '') = $10)
    FOR SHARE),
device AS (
    SELECT true FROM devices
    WHERE user_id = $2 AND device_id = $3 AND EXISTS (SELECT FROM account) FOR NO KEY UPDATE),
allowed AS (
    SELECT true WHERE ($3::text IS NULL OR EXISTS (SELECT FROM device)) AND EXISTS (SELECT FROM account)),
refresh AS (
    INSERT INTO refresh_tokens (token_hash, user_id, device_id, replaces, expires_ts, session_ends_ts)
    SELECT $6, $2, $3, $7, $8, $9 FROM allowed WHERE $6::bytea IS NOT NULL RETURNING refresh_id),
made AS (
    INSERT INTO access_tokens (token_hash, user_id, device_id, created_ts, expires_ts, replaces, refresh_id)
    SELECT $1, $2, $3, $4, $5, $7, (SELECT refresh_id FROM refresh) FROM allowed RETURNING true)
SELECT CASE WHEN EXISTS (SELECT FROM made) THEN 'made'
            WHEN EXISTS (SELECT FROM account) THEN 'no device'
            ELSE 'refused' END
"""
_BESIDE_OTHERS = """
SELECT token_id FROM access_tokens t WHERE token_hash = $1 AND EXISTS (
    SELECT FROM access_tokens o
    WHERE o.user_id = t.user_id AND o.device_id = t.device_id AND o.token_id <> t.token_id)
"""
_LOAD_REFRESH = """
SELECT refresh_id, user_id, device_id, replaces, expires_ts, session_ends_ts FROM refresh_tokens
WHERE token_hash = $1
"""
# Account and device first: revoking their tokens waits for what is made here, or nothing is made any more.
_LOCK_REFRESH = """
WITH account AS (SELECT true FROM accounts WHERE user_id = $2 AND NOT deactivated FOR SHARE),
device AS (
    SELECT true FROM devices
    WHERE user_id = $2 AND device_id = $3 AND EXISTS (SELECT FROM account) FOR KEY SHARE)
SELECT true FROM refresh_tokens WHERE refresh_id = $1 AND EXISTS (SELECT FROM device) FOR UPDATE
"""
_DROP_SUCCESSORS = "DELETE FROM refresh_tokens WHERE replaces = $1"  # their access tokens go with them
_DEVICES = "SELECT DISTINCT device_id FROM access_tokens WHERE user_id = $1 AND device_id IS NOT NULL"
_REAUTHENTICATED = "SELECT reauthenticated_ts FROM access_tokens WHERE token_id = $1"
_SET_REAUTHENTICATED = "UPDATE access_tokens SET reauthenticated_ts = $2 WHERE token_id = $1"
_SWEEP = "DELETE FROM refresh_tokens WHERE session_ends_ts < $1"

_KEEP_SHORT = """
INSERT INTO short_lived_tokens (token_hash, purpose, user_id, expires_ts)
SELECT $1, $2, user_id, $4 FROM accounts
WHERE user_id = $3 AND NOT deactivated AND ($5::text IS NULL OR password_hash = $5) FOR SHARE
"""
# Whoever changes the password removes the tokens in the same commit: what is seen here is the one before.
_TAKE_SHORT = """
DELETE FROM short_lived_tokens t WHERE token_hash = $1 AND purpose = $2
RETURNING user_id, expires_ts,
          (SELECT coalesce(password_hash, '') FROM accounts a WHERE a.user_id = t.user_id) AS password_hash
"""
_READ_SHORT = """
SELECT user_id FROM short_lived_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_ts > $3
"""
_DROP_SHORT = "DELETE FROM short_lived_tokens WHERE user_id = $1"
_SWEEP_SHORT = "DELETE FROM short_lived_tokens WHERE expires_ts <= $1"


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """An access token and what matters of its account."""

    token_id: int
    user_id: str
    device_id: str | None
    expires_ts: int | None
    replaces: int | None
    is_guest: bool
    is_admin: bool
    locked: bool
    suspended: bool
    shadow_banned: bool
    rate_limited: bool
    appservice_id: str | None


class RefreshRow(msgspec.Struct, frozen=True, kw_only=True):
    """A refresh token; see the table ``refresh_tokens``."""

    refresh_id: int
    user_id: str
    device_id: str
    replaces: int | None
    expires_ts: int | None
    session_ends_ts: int | None


class NewTokens(msgspec.Struct, frozen=True, kw_only=True):
    """An access token to be stored, and its refresh token if it has one. Times are in milliseconds."""

    token_hash: bytes
    user_id: str
    device_id: str | None
    created_ts: int
    expires_ts: int | None
    refresh_hash: bytes | None = None
    refresh_expires_ts: int | None = None
    session_ends_ts: int | None = None


class TakenToken(NamedTuple):
    """Whose a token was, and the hash of the password that the account had then, empty for none."""

    user_id: str
    password_hash: str


class AccessTokenStore:
    """Read and write ``access_tokens`` and ``refresh_tokens``. Revoking goes through the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, token_hash: bytes) -> TokenRow | None:
        """Give an access token of an account in use."""
        record = await self._database.fetchrow(_LOAD, token_hash)
        return None if record is None else TokenRow(**record)

    async def insert(self, new: NewTokens, password_hash: str | None) -> str:
        """Store the tokens of a new session, perhaps only if the account has a password of this hash.

        The hash is empty for an account without a password. Says "made", "no device" if that was deleted
        meanwhile, or "refused" if the account has another password by now or was deactivated; then nothing
        was written.
        """
        async with self._database.connection() as connection:
            return await _insert(connection, new, None, password_hash)

    async def beside_others(self, token_hash: bytes) -> int | None:
        """Give the id of an access token, None if its device has no other one or the token is gone."""
        token_id: int | None = await self._database.fetchval(_BESIDE_OTHERS, token_hash)
        return token_id

    async def devices(self, user_id: str) -> list[str]:
        """Give the devices of a user that have a session."""
        return [record["device_id"] for record in await self._database.fetch(_DEVICES, user_id)]

    async def load_refresh(self, token_hash: bytes) -> RefreshRow | None:
        """Give a refresh token."""
        record = await self._database.fetchrow(_LOAD_REFRESH, token_hash)
        return None if record is None else RefreshRow(**record)

    async def succeed(self, refresh_id: int, new: NewTokens) -> bool:
        """Store the successors of a refresh token in place of earlier ones that were never used.

        False if the token was revoked meanwhile.
        """
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_LOCK_REFRESH, refresh_id, new.user_id, new.device_id):
                return False
            await connection.execute(_DROP_SUCCESSORS, refresh_id)
            return await _insert(connection, new, refresh_id, None) == "made"

    async def reauthenticated_ts(self, token_id: int) -> int | None:
        """Give when the holder of a token last proved again who they are, in milliseconds."""
        found: int | None = await self._database.fetchval(_REAUTHENTICATED, token_id)
        return found

    async def set_reauthenticated_ts(self, token_id: int, now_ms: int) -> None:
        """Note that the holder of a token proved again who they are."""
        await self._database.execute(_SET_REAUTHENTICATED, token_id, now_ms)

    async def sweep(self, now_ms: int) -> int:
        """Remove the tokens of sessions that ended; gives how many refresh tokens."""
        return await self._database.execute(_SWEEP, now_ms)


async def _insert(
    connection: Connection, new: NewTokens, replaces: int | None, password_hash: str | None
) -> str:
    outcome: str = await connection.fetchval(
        _INSERT,
        new.token_hash,
        new.user_id,
        new.device_id,
        new.created_ts,
        new.expires_ts,
        new.refresh_hash,
        replaces,
        new.refresh_expires_ts,
        new.session_ends_ts,
        password_hash,
    )
    return outcome


class ShortLivedTokenStore:
    """Read and write ``short_lived_tokens`` of one purpose (``login``, ``openid``)."""

    def __init__(self, database: Database, purpose: str) -> None:
        self._database = database
        self._purpose = purpose

    async def keep(
        self, token_hash: bytes, user_id: str, expires_ts: int, password_hash: str | None = None
    ) -> bool:
        """Store a token until a time in milliseconds, perhaps only if the password has this hash.

        False if it has another one, or the account is not in use.
        """
        kept = await self._database.execute(
            _KEEP_SHORT, token_hash, self._purpose, user_id, expires_ts, password_hash
        )
        return kept == 1

    async def take(self, token_hash: bytes, now_ms: int) -> TakenToken | None:
        """Use a token up and say whose it was, None if it is not known or expired."""
        async with self._database.connection() as connection:
            record = await connection.fetchrow(_TAKE_SHORT, token_hash, self._purpose)
        if record is None or record["expires_ts"] <= now_ms:
            return None
        return TakenToken(record["user_id"], record["password_hash"])

    async def read(self, token_hash: bytes, now_ms: int) -> str | None:
        """Give the user of a token, None if it is not known or expired."""
        user_id: str | None = await self._database.fetchval(_READ_SHORT, token_hash, self._purpose, now_ms)
        return user_id

    async def drop(self, user_id: str) -> None:
        """Remove a user's tokens of every purpose."""
        await self._database.execute(_DROP_SHORT, user_id)

    async def sweep(self, now_ms: int) -> int:
        """Remove expired tokens of every purpose; gives how many."""
        return await self._database.execute(_SWEEP_SHORT, now_ms)
