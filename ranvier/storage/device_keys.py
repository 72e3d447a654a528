"""Identity keys, one-time keys and fallback keys of devices, and what a query for keys reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ranvier.storage.database import Database

_GET = "SELECT keys FROM device_keys WHERE user_id = $1 AND device_id = $2"
_OF_USERS = """
SELECT k.user_id, k.device_id, k.keys, d.display_name
FROM device_keys k JOIN devices d USING (user_id, device_id) WHERE k.user_id = ANY ($1)
"""
_CROSS_SIGNING = "SELECT user_id, usage, public_key, key FROM cross_signing_keys WHERE user_id = ANY ($1)"
# "Users will not be able to see signatures made by other users' user-signing keys."
_SIGNATURES = """
SELECT target_user_id, target_id, signer_user_id, signer_key_id, signature FROM key_signatures
WHERE target_user_id = ANY ($1) AND (signer_user_id = target_user_id OR signer_user_id = $2)
"""
_SAME_IDS = """
SELECT k.algorithm, k.key_id, k.key
FROM unnest($3::text[], $4::text[]) AS new (algorithm, key_id)
JOIN one_time_keys k ON k.user_id = $1 AND k.device_id = $2
 AND k.algorithm = new.algorithm AND k.key_id = new.key_id
"""
_ADD_ONE_TIME = """
INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key)
SELECT d.user_id, d.device_id, new.algorithm, new.key_id, new.key
FROM unnest($3::text[], $4::text[], $5::bytea[]) AS new (algorithm, key_id, key), devices d
WHERE d.user_id = $1 AND d.device_id = $2
ON CONFLICT DO NOTHING
"""
# A statement of its own after that one, which may have waited for the claim.
_LEAVE_OUT_CLAIMED = """
DELETE FROM one_time_keys k USING claimed_one_time_keys c
WHERE k.user_id = $1 AND k.device_id = $2 AND c.user_id = $1 AND c.device_id = $2
  AND c.algorithm = k.algorithm AND c.key_id = k.key_id
"""
_FORGET_CLAIMED = """
DELETE FROM claimed_one_time_keys WHERE (user_id, device_id, algorithm, key_id) IN (
    SELECT user_id, device_id, algorithm, key_id FROM claimed_one_time_keys
    WHERE claimed_at < now() - interval '1 day' ORDER BY claimed_at LIMIT 1000 FOR UPDATE SKIP LOCKED)
"""
_SET_FALLBACK = """
INSERT INTO fallback_keys AS old (user_id, device_id, algorithm, key_id, key)
SELECT d.user_id, d.device_id, new.algorithm, new.key_id, new.key
FROM unnest($3::text[], $4::text[], $5::bytea[]) AS new (algorithm, key_id, key), devices d
WHERE d.user_id = $1 AND d.device_id = $2
ON CONFLICT (user_id, device_id, algorithm) DO UPDATE
    SET key_id = excluded.key_id, key = excluded.key, used = false
    WHERE old.key_id <> excluded.key_id OR old.key <> excluded.key
"""
_COUNTS = """
SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm
"""
_UNUSED = """
SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm
"""
# Claims that run at the same time, in any process, step over the rows that another one is taking.
_CLAIM = """
WITH wanted AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS w (user_id, device_id, algorithm)),
picked AS MATERIALIZED (
    SELECT k.seq FROM wanted w CROSS JOIN LATERAL (
        SELECT seq FROM one_time_keys o
        WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm
        ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED) k),
claimed AS (
    DELETE FROM one_time_keys o USING picked WHERE o.seq = picked.seq
    RETURNING o.user_id, o.device_id, o.algorithm, o.key_id, o.key),
kept AS (
    INSERT INTO claimed_one_time_keys (user_id, device_id, algorithm, key_id)
    SELECT user_id, device_id, algorithm, key_id FROM claimed ON CONFLICT DO NOTHING)
SELECT user_id, device_id, algorithm, key_id, key FROM claimed
"""
_FALLBACK = """
SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.key
FROM unnest($1::text[], $2::text[], $3::text[]) AS w (user_id, device_id, algorithm)
JOIN fallback_keys f USING (user_id, device_id, algorithm)
"""
_FALLBACK_USED = """
UPDATE fallback_keys f SET used = true FROM (
    SELECT user_id, device_id, algorithm, key_id FROM fallback_keys
    JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (user_id, device_id, algorithm, key_id)
        USING (user_id, device_id, algorithm, key_id)
    WHERE NOT used ORDER BY user_id, device_id, algorithm FOR UPDATE OF fallback_keys) given
WHERE f.user_id = given.user_id AND f.device_id = given.device_id AND f.algorithm = given.algorithm
"""


class StoredKeys(NamedTuple):
    """Identity keys of one device, and the name that the user gave it."""

    user_id: str
    device_id: str
    keys: bytes
    display_name: str | None


class CrossSigningKey(NamedTuple):
    """One cross-signing key: ``usage`` is master, self_signing or user_signing, ``key`` the JSON object."""

    user_id: str
    usage: str
    public_key: str
    key: bytes


class KeySignature(NamedTuple):
    """A signature on a key: ``target_id`` is a device id or the public key of a master key."""

    target_user_id: str
    target_id: str
    signer_user_id: str
    signer_key_id: str
    signature: str


class UserKeys(NamedTuple):
    """All that a query for the keys of some users reads, of one moment."""

    devices: list[StoredKeys]
    cross_signing: list[CrossSigningKey]
    signatures: list[KeySignature]


class PreKey(NamedTuple):
    """A one-time or fallback key of a device; ``key`` is JSON, a string or a signed object."""

    algorithm: str
    key_id: str
    key: bytes


class Claim(NamedTuple):
    """A wish for one key of a device."""

    user_id: str
    device_id: str
    algorithm: str


class Claimed(NamedTuple):
    """A key that was given out."""

    user_id: str
    device_id: str
    algorithm: str
    key_id: str
    key: bytes


class DeviceKeyStore:
    """Read keys, and keep the one-time and fallback keys; identity keys are written through the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, user_id: str, device_id: str) -> bytes | None:
        """Give the identity keys of a device as they were uploaded."""
        keys: bytes | None = await self._database.fetchval(_GET, user_id, device_id)
        return keys

    async def of_users(self, user_ids: Sequence[str], seen_by: str) -> UserKeys:
        """Give all keys of some users, with the signatures that ``seen_by`` may see."""
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            devices = await connection.fetch(_OF_USERS, user_ids)
            cross_signing = await connection.fetch(_CROSS_SIGNING, user_ids)
            signatures = await connection.fetch(_SIGNATURES, user_ids, seen_by)
        return UserKeys(
            [StoredKeys(*record) for record in devices],
            [CrossSigningKey(*record) for record in cross_signing],
            [KeySignature(*record) for record in signatures],
        )

    async def with_same_ids(self, user_id: str, device_id: str, keys: Sequence[PreKey]) -> list[PreKey]:
        """Give the one-time keys in store that have the algorithm and id of one of these."""
        records = await self._database.fetch(
            _SAME_IDS, user_id, device_id, [k.algorithm for k in keys], [k.key_id for k in keys]
        )
        return [PreKey(*record) for record in records]

    async def add(
        self, user_id: str, device_id: str, one_time: Sequence[PreKey], fallback: Sequence[PreKey]
    ) -> None:
        """Keep one-time keys, and fallback keys in place of those of the same algorithm.

        A one-time key that was given out within a day, by its id, is left out.
        """
        async with self._database.transaction() as connection:
            for sql, keys in ((_ADD_ONE_TIME, one_time), (_SET_FALLBACK, fallback)):
                if keys:
                    columns = (list(column) for column in zip(*keys, strict=True))
                    await connection.execute(sql, user_id, device_id, *columns)
            if one_time:
                await connection.execute(_LEAVE_OUT_CLAIMED, user_id, device_id)
                await connection.execute(_FORGET_CLAIMED)

    async def counts(self, user_id: str, device_id: str) -> tuple[dict[str, int], list[str]]:
        """Count the one-time keys by algorithm, and name the algorithms with an unused fallback key."""
        async with self._database.connection() as connection:
            counts = await connection.fetch(_COUNTS, user_id, device_id)
            unused = await connection.fetch(_UNUSED, user_id, device_id)
        return {r["algorithm"]: r["count"] for r in counts}, [r["algorithm"] for r in unused]

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Take one one-time key for each claim that finds one: nobody else ever gets it."""
        async with self._database.connection() as connection:
            records = await connection.fetch(_CLAIM, *_columns(claims))
        return [Claimed(*record) for record in records]

    async def fallback(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Give the fallback key for each claim that finds one, and mark them used."""
        async with self._database.connection() as connection:
            given = [Claimed(*r) for r in await connection.fetch(_FALLBACK, *_columns(claims))]
            if given:
                await connection.execute(_FALLBACK_USED, *_columns([claimed[:4] for claimed in given]))
        return given


def _columns(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
