"""Server-side key backups: encrypted session keys that a user's devices store for each other.

Source: client-server API, "Server-side key backups".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from ranvier.log.append import Appender
from ranvier.spec.errors import MatrixError, bad_json, invalid_param, not_found
from ranvier.spec.ids import check_room_id, fits
from ranvier.storage.key_backup import BackedUpKey, Backup, KeyBackupStore

MAX_AUTH_DATA_BYTES: Final = 64 * 1024
MAX_SESSION_DATA_BYTES: Final = 64 * 1024
_MAX_INDEX: Final = 2**53 - 1
_MAX_VERSION_DIGITS: Final = 18


class KeyData(msgspec.Struct):
    """One backed-up session key, as clients send it."""

    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: dict[str, Any]


Rooms = Mapping[str, Mapping[str, KeyData]]
"""Room id to session id to key."""


class KeyBackups:
    """Keep the versions of each user's backup, and the keys in them."""

    def __init__(self, *, store: KeyBackupStore, appender: Appender) -> None:
        self._store = store
        self._appender = appender

    async def create(self, user_id: str, algorithm: str, auth_data: dict[str, Any]) -> str:
        """Begin a new version, which becomes the current one, and give its name."""
        if not algorithm or not fits(algorithm):
            raise invalid_param("The algorithm must be a name of at most 255 bytes")
        self._appender.check_in_time()
        return str(await self._store.create(user_id, algorithm, _auth_data(auth_data)))

    async def current(self, user_id: str) -> dict[str, Any]:
        """Describe the current version. Raises 404 ``M_NOT_FOUND`` where there is none."""
        backup = await self._store.current(user_id)
        if backup is None:
            raise not_found("No current backup version")
        return _described(backup)

    async def get(self, user_id: str, version: str) -> dict[str, Any]:
        """Describe a version. Raises 404 ``M_NOT_FOUND``."""
        return _described(await self._existing(user_id, version))

    async def update(
        self, user_id: str, version: str, algorithm: str, auth_data: dict[str, Any], said: str | None
    ) -> None:
        """Replace ``auth_data`` of a version; ``said`` is the version that the body names, if it does.

        Raises 404 ``M_NOT_FOUND`` and 400 ``M_INVALID_PARAM`` for another algorithm or version.
        """
        backup = await self._existing(user_id, version)
        if said is not None and said != version:
            raise invalid_param("The version in the body is not the one in the path")
        if algorithm != backup.algorithm:
            raise invalid_param("The algorithm of a backup can not change")
        self._appender.check_in_time()
        await self._store.set_auth_data(user_id, backup.version, _auth_data(auth_data))

    async def delete(self, user_id: str, version: str) -> None:
        """Delete a version with its keys; a second time is no error. Raises 404 ``M_NOT_FOUND``."""
        backup = await self._find(user_id, version)
        if backup is None:
            raise not_found("Unknown backup version")
        if not backup.deleted:
            self._appender.check_in_time()
            await self._store.delete(user_id, backup.version)

    async def put(self, user_id: str, version: str, rooms: Rooms) -> dict[str, Any]:
        """Store keys in the current version and give its new ``etag`` and ``count``.

        Raises 403 ``M_WRONG_ROOM_KEYS_VERSION`` where another version is the current one, 404
        ``M_NOT_FOUND`` where none is or ``version`` never was, and 400 for keys that are no such thing.
        """
        keys = _checked(rooms)
        backup = await self._find(user_id, version)
        if backup is None:
            raise not_found("Unknown backup version")
        current, stored = await self._store.put(user_id, backup.version, keys)
        if current is None:
            raise not_found("No current backup version")
        if current != backup.version:
            raise MatrixError(
                "M_WRONG_ROOM_KEYS_VERSION",
                403,
                "Keys can only be stored in the current backup version",
                current_version=str(current),
            )
        return _summary(stored)

    async def keys(
        self, user_id: str, version: str, room_id: str | None = None, session_id: str | None = None
    ) -> dict[str, dict[str, Any]]:
        """Give keys by room and session. Raises 404 ``M_NOT_FOUND`` for an unknown version."""
        backup = await self._existing(user_id, version)
        rooms: dict[str, dict[str, Any]] = {}
        for key in await self._store.keys(user_id, backup.version, room_id, session_id):
            rooms.setdefault(key.room_id, {})[key.session_id] = {
                "first_message_index": key.first_message_index,
                "forwarded_count": key.forwarded_count,
                "is_verified": key.is_verified,
                "session_data": orjson.Fragment(key.session_data),
            }
        return rooms

    async def delete_keys(
        self, user_id: str, version: str, room_id: str | None = None, session_id: str | None = None
    ) -> dict[str, Any]:
        """Delete keys and give the new ``etag`` and ``count``. Raises 404 ``M_NOT_FOUND``."""
        backup = await self._existing(user_id, version)
        self._appender.check_in_time()
        left = await self._store.delete_keys(user_id, backup.version, room_id, session_id)
        if left is None:
            raise not_found("Unknown backup version")
        return _summary(left)

    async def _existing(self, user_id: str, version: str) -> Backup:
        backup = await self._find(user_id, version)
        if backup is None or backup.deleted:
            raise not_found("Unknown backup version")
        return backup

    async def _find(self, user_id: str, version: str) -> Backup | None:
        if not version.isascii() or not version.isdigit() or len(version) > _MAX_VERSION_DIGITS:
            return None
        return await self._store.get(user_id, int(version))


def _described(backup: Backup) -> dict[str, Any]:
    return {
        "algorithm": backup.algorithm,
        "auth_data": orjson.Fragment(backup.auth_data),
        "version": str(backup.version),
        **_summary(backup),
    }


def _summary(backup: Backup) -> dict[str, Any]:
    return {"etag": str(backup.etag), "count": backup.count}


def _auth_data(auth_data: dict[str, Any]) -> bytes:
    written = orjson.dumps(auth_data)
    if len(written) > MAX_AUTH_DATA_BYTES:
        raise MatrixError("M_TOO_LARGE", 413, f"auth_data may have at most {MAX_AUTH_DATA_BYTES} bytes")
    return written


def _checked(rooms: Rooms) -> Sequence[BackedUpKey]:
    return [_key(room_id, session_id, key) for room_id, session_id, key in _flat(rooms)]


def _flat(rooms: Rooms) -> Iterable[tuple[str, str, KeyData]]:
    for room_id, sessions in rooms.items():
        check_room_id(room_id)
        for session_id, key in sessions.items():
            yield room_id, session_id, key


def _key(room_id: str, session_id: str, key: KeyData) -> BackedUpKey:
    if not session_id or not fits(session_id):
        raise invalid_param("A session ID has 1 to 255 bytes")
    if not (0 <= key.first_message_index <= _MAX_INDEX and 0 <= key.forwarded_count <= _MAX_INDEX):
        raise bad_json("first_message_index and forwarded_count must be numbers from 0 to 2^53 - 1")
    session_data = orjson.dumps(key.session_data)
    if len(session_data) > MAX_SESSION_DATA_BYTES:
        raise MatrixError("M_TOO_LARGE", 413, f"A key may have at most {MAX_SESSION_DATA_BYTES} bytes")
    return BackedUpKey(
        room_id, session_id, key.first_message_index, key.forwarded_count, key.is_verified, session_data
    )
