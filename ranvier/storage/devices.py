"""Devices of the users of this server."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ranvier.storage.database import Database

# A device id that equals a cross-signing key of the user would make two keys of one name.
_ENSURE = """
WITH made AS (
    INSERT INTO devices (user_id, device_id, display_name)
        SELECT $1, $2, $3 WHERE NOT EXISTS (
            SELECT FROM cross_signing_keys WHERE user_id = $1 AND public_key = $2)
        ON CONFLICT DO NOTHING RETURNING true)
SELECT CASE WHEN EXISTS (SELECT FROM made) THEN 'made'
            WHEN EXISTS (SELECT FROM devices WHERE user_id = $1 AND device_id = $2) THEN 'known'
            WHEN EXISTS (SELECT FROM cross_signing_keys WHERE user_id = $1 AND public_key = $2) THEN 'taken'
            ELSE 'known' END
"""
_COLUMNS = "user_id, device_id, display_name, last_seen_ts, last_seen_ip, last_seen_agent"
_LIST = f"SELECT {_COLUMNS} FROM devices WHERE user_id = $1 ORDER BY created_at, device_id"
_GET = f"SELECT {_COLUMNS} FROM devices WHERE user_id = $1 AND device_id = $2"
_IDS = "SELECT user_id, device_id FROM devices WHERE user_id = ANY ($1)"
_WITH_KEYS = """
SELECT d.device_id, k.device_id IS NOT NULL AS has_keys
FROM devices d LEFT JOIN device_keys k USING (user_id, device_id)
WHERE d.user_id = $1 AND d.device_id = ANY ($2)
"""
_WITH_TOKENS = """
SELECT DISTINCT device_id FROM access_tokens WHERE user_id = $1 AND device_id = ANY ($2)
"""
_SAW = """
UPDATE devices d SET last_seen_ts = s.ts, last_seen_ip = s.ip, last_seen_agent = s.agent
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[])
    AS s (user_id, device_id, ts, ip, agent)
WHERE d.user_id = s.user_id AND d.device_id = s.device_id AND coalesce(d.last_seen_ts, 0) < s.ts
"""


class Device(msgspec.Struct, frozen=True, gc=False):
    """A row of the table ``devices``; ``last_seen_ts`` is in milliseconds since the epoch."""

    user_id: str
    device_id: str
    display_name: str | None
    last_seen_ts: int | None
    last_seen_ip: str | None
    last_seen_agent: str | None


class Sighting(msgspec.Struct, frozen=True, gc=False):
    """Where and when a device made a request; ``ts`` in milliseconds since the epoch."""

    user_id: str
    device_id: str
    ts: int
    ip: str
    agent: str


class DeviceStore:
    """Read and write ``devices``. Renaming and deleting go through the log, see the schema."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, user_id: str, device_id: str, display_name: str | None) -> str:
        """Make a device unless it exists: "made", "known", or "taken" by a cross-signing key."""
        # Not `fetchval`, which may repeat a statement whose outcome is unknown: the answer would be another.
        async with self._database.connection() as connection:
            outcome: str = await connection.fetchval(_ENSURE, user_id, device_id, display_name)
        return outcome

    async def of_user(self, user_id: str) -> list[Device]:
        """Give the devices of a user, oldest first."""
        return [Device(*record) for record in await self._database.fetch(_LIST, user_id)]

    async def get(self, user_id: str, device_id: str) -> Device | None:
        """Find one device."""
        record = await self._database.fetchrow(_GET, user_id, device_id)
        return None if record is None else Device(*record)

    async def ids_of(self, user_ids: Sequence[str]) -> dict[str, set[str]]:
        """Give the device ids of some users; a user without devices is left out."""
        found: dict[str, set[str]] = {}
        for record in await self._database.fetch(_IDS, user_ids):
            found.setdefault(record["user_id"], set()).add(record["device_id"])
        return found

    async def have_keys(self, user_id: str, device_ids: Sequence[str]) -> dict[str, bool]:
        """Say of each of these devices that exists whether it has identity keys."""
        records = await self._database.fetch(_WITH_KEYS, user_id, device_ids)
        return {record["device_id"]: record["has_keys"] for record in records}

    async def have_tokens(self, user_id: str, device_ids: Sequence[str]) -> list[str]:
        """Give those of these devices that have a session, though the device itself may be gone."""
        records = await self._database.fetch(_WITH_TOKENS, user_id, device_ids)
        return [record["device_id"] for record in records]

    async def saw(self, sightings: Sequence[Sighting]) -> None:
        """Note when and where devices were seen last; at most one sighting for each device."""
        if sightings:
            columns = zip(*((s.user_id, s.device_id, s.ts, s.ip, s.agent) for s in sightings), strict=True)
            await self._database.execute(_SAW, *(list(column) for column in columns))
