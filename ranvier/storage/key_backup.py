"""Key backups: their versions, and the session keys in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ranvier.storage.database import Connection, Database

_COLUMNS = """
version, algorithm, auth_data, etag, deleted,
(SELECT count(*) FROM key_backup_keys k WHERE k.user_id = b.user_id AND k.version = b.version) AS count
"""
_CREATE = """
INSERT INTO key_backups (user_id, version, algorithm, auth_data)
SELECT $1, coalesce(max(version), 0) + 1, $2, $3 FROM key_backups WHERE user_id = $1
ON CONFLICT DO NOTHING RETURNING version
"""
_CURRENT = f"""
SELECT {_COLUMNS} FROM key_backups b WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1
"""
_GET = f"SELECT {_COLUMNS} FROM key_backups b WHERE user_id = $1 AND version = $2"
_SET_AUTH_DATA = "UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2 AND NOT deleted"
_DELETE = "UPDATE key_backups SET deleted = true WHERE user_id = $1 AND version = $2"
_DELETE_ALL_KEYS = "DELETE FROM key_backup_keys WHERE user_id = $1 AND version = $2"

# The row of the version is locked, so that two devices that store at once both count in the etag.
_LOCK_CURRENT = """
SELECT version FROM key_backups WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1 FOR UPDATE
"""
_LOCK = "SELECT version FROM key_backups WHERE user_id = $1 AND version = $2 AND NOT deleted FOR UPDATE"
# Which of two keys stays: the verified one, else the one that decrypts more, else the one forwarded less.
_PUT = """
INSERT INTO key_backup_keys AS old (user_id, version, room_id, session_id, first_message_index,
                                    forwarded_count, is_verified, session_data)
SELECT $1, $2, new.* FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bool[], $8::bytea[])
    AS new (room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE
    SET first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
        is_verified = excluded.is_verified, session_data = excluded.session_data
    WHERE (NOT excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)
        < (NOT old.is_verified, old.first_message_index, old.forwarded_count)
"""
_CHANGED = "UPDATE key_backups SET etag = etag + 1 WHERE user_id = $1 AND version = $2"
_CHOSEN = """
user_id = $1 AND version = $2 AND ($3::text IS NULL OR room_id = $3) AND ($4::text IS NULL OR session_id = $4)
"""
_KEYS = f"""
SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
FROM key_backup_keys WHERE {_CHOSEN} ORDER BY room_id, session_id
"""
_DELETE_KEYS = f"DELETE FROM key_backup_keys WHERE {_CHOSEN}"


class Backup(msgspec.Struct, frozen=True, gc=False):
    """One version of a user's backup; ``count`` is the number of its keys."""

    version: int
    algorithm: str
    auth_data: bytes
    etag: int
    deleted: bool
    count: int


class BackedUpKey(NamedTuple):
    """One session key; ``session_data`` is a JSON object that only the user's devices can read."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes


class KeyBackupStore:
    """Read and write ``key_backups`` and ``key_backup_keys``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user_id: str, algorithm: str, auth_data: bytes) -> int:
        """Begin a new version and give its number."""
        while True:
            async with self._database.connection() as connection:
                version: int | None = await connection.fetchval(_CREATE, user_id, algorithm, auth_data)
            if version is not None:
                return version  # otherwise another device took the number at this moment

    async def current(self, user_id: str) -> Backup | None:
        """Give the newest version that is not deleted."""
        record = await self._database.fetchrow(_CURRENT, user_id)
        return None if record is None else Backup(*record)

    async def get(self, user_id: str, version: int) -> Backup | None:
        """Give one version, be it a deleted one."""
        record = await self._database.fetchrow(_GET, user_id, version)
        return None if record is None else Backup(*record)

    async def set_auth_data(self, user_id: str, version: int, auth_data: bytes) -> None:
        """Replace the algorithm's data of a version."""
        await self._database.execute(_SET_AUTH_DATA, user_id, version, auth_data)

    async def delete(self, user_id: str, version: int) -> None:
        """Delete a version with its keys; its number stays taken."""
        async with self._database.transaction() as connection:
            await connection.execute(_DELETE, user_id, version)
            await connection.execute(_DELETE_ALL_KEYS, user_id, version)

    async def put(self, user_id: str, version: int, keys: Sequence[BackedUpKey]) -> tuple[int | None, Backup]:
        """Store keys in the current version, each unless a better one is there.

        Gives the version that is current in truth (None: none is), and if that is ``version`` what it holds
        now. Each room and session may come once.
        """
        async with self._database.transaction() as connection:
            current: int | None = await connection.fetchval(_LOCK_CURRENT, user_id)
            if current == version and keys:
                columns = (list(column) for column in zip(*keys, strict=True))
                await _note_change(
                    connection, user_id, version, await connection.execute(_PUT, user_id, version, *columns)
                )
            record = await connection.fetchrow(_GET, user_id, version)
        return current, Backup(*record) if record is not None else Backup(version, "", b"{}", 0, True, 0)

    async def keys(
        self, user_id: str, version: int, room_id: str | None = None, session_id: str | None = None
    ) -> list[BackedUpKey]:
        """Give the keys of a version, of one room or of all, of one session or of all."""
        records = await self._database.fetch(_KEYS, user_id, version, room_id, session_id)
        return [BackedUpKey(*record) for record in records]

    async def delete_keys(
        self, user_id: str, version: int, room_id: str | None = None, session_id: str | None = None
    ) -> Backup | None:
        """Delete keys, chosen as in ``keys``, and give the version as it is then; None if it is not there."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(_LOCK, user_id, version) is None:
                return None
            status = await connection.execute(_DELETE_KEYS, user_id, version, room_id, session_id)
            await _note_change(connection, user_id, version, status)
            record = await connection.fetchrow(_GET, user_id, version)
        assert record is not None, "the row is locked"
        return Backup(*record)


async def _note_change(connection: Connection, user_id: str, version: int, status: str) -> None:
    if status.rpartition(" ")[2] != "0":
        await connection.execute(_CHANGED, user_id, version)
