"""Server-side key backups. Source: client-server API, "Server-side key backups"."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.response import Result
from ranvier.http.route import Route, versions
from ranvier.spec.errors import not_found
from ranvier.users.key_backup import KeyBackups, KeyData

V3 = versions("v3", "r0", "unstable")
MAX_BODY = 8 * 1024 * 1024
"""A client that begins a backup sends many keys at once."""


class VersionBody(msgspec.Struct):
    """What a backup is made with."""

    algorithm: str
    auth_data: dict[str, Any]
    version: str | None = None


class RoomBody(msgspec.Struct):
    """The keys of one room by session."""

    sessions: dict[str, KeyData]


class AllBody(msgspec.Struct):
    """The keys of many rooms."""

    rooms: dict[str, RoomBody]


async def create_version(request: Request, *, key_backups: KeyBackups) -> Result:
    """Begin a new backup."""
    body = request.json(VersionBody)
    version = await key_backups.create(request.user.user_id, body.algorithm, body.auth_data)
    return {"version": version}


async def get_current_version(request: Request, *, key_backups: KeyBackups) -> Result:
    """Describe the current backup."""
    return await key_backups.current(request.user.user_id)


async def get_version(request: Request, *, key_backups: KeyBackups) -> Result:
    """Describe one backup."""
    return await key_backups.get(request.user.user_id, request.params["version"])


async def put_version(request: Request, *, key_backups: KeyBackups) -> Result:
    """Replace the algorithm's data of a backup."""
    body = request.json(VersionBody)
    version = request.params["version"]
    await key_backups.update(request.user.user_id, version, body.algorithm, body.auth_data, body.version)
    return {}


async def delete_version(request: Request, *, key_backups: KeyBackups) -> Result:
    """Delete a backup with its keys."""
    await key_backups.delete(request.user.user_id, request.params["version"])
    return {}


async def put_all_keys(request: Request, *, key_backups: KeyBackups) -> Result:
    """Store keys of many rooms."""
    rooms = {room_id: room.sessions for room_id, room in request.json(AllBody).rooms.items()}
    return await key_backups.put(request.user.user_id, request.str_param("version"), rooms)


async def put_room_keys(request: Request, *, key_backups: KeyBackups) -> Result:
    """Store keys of one room."""
    rooms = {request.params["room_id"]: request.json(RoomBody).sessions}
    return await key_backups.put(request.user.user_id, request.str_param("version"), rooms)


async def put_key(request: Request, *, key_backups: KeyBackups) -> Result:
    """Store one key."""
    rooms = {request.params["room_id"]: {request.params["session_id"]: request.json(KeyData)}}
    return await key_backups.put(request.user.user_id, request.str_param("version"), rooms)


async def get_all_keys(request: Request, *, key_backups: KeyBackups) -> Result:
    """Give all keys."""
    rooms = await key_backups.keys(request.user.user_id, request.str_param("version"))
    return {"rooms": {room_id: {"sessions": sessions} for room_id, sessions in rooms.items()}}


async def get_room_keys(request: Request, *, key_backups: KeyBackups) -> Result:
    """Give the keys of one room."""
    room_id = request.params["room_id"]
    rooms = await key_backups.keys(request.user.user_id, request.str_param("version"), room_id)
    return {"sessions": rooms.get(room_id, {})}


async def get_key(request: Request, *, key_backups: KeyBackups) -> Result:
    """Give one key."""
    room_id, session_id = request.params["room_id"], request.params["session_id"]
    version = request.str_param("version")
    rooms = await key_backups.keys(request.user.user_id, version, room_id, session_id)
    for sessions in rooms.values():
        found: dict[str, Any] = sessions[session_id]
        return found
    raise not_found("Key not found")


async def delete_keys(request: Request, *, key_backups: KeyBackups) -> Result:
    """Delete one key, those of a room, or all."""
    params = request.params
    return await key_backups.delete_keys(
        request.user.user_id, request.str_param("version"), params.get("room_id"), params.get("session_id")
    )


_KEYS, _VERSION = "/room_keys/keys", "/room_keys/version"

ROUTES = [
    Route("POST", V3(_VERSION), create_version),
    Route("GET", V3(_VERSION), get_current_version),
    Route("GET", V3(_VERSION + "/{version}"), get_version),
    Route("PUT", V3(_VERSION + "/{version}"), put_version),
    Route("DELETE", V3(_VERSION + "/{version}"), delete_version),
    Route("PUT", V3(_KEYS), put_all_keys, max_body=MAX_BODY),
    Route("PUT", V3(_KEYS + "/{room_id}"), put_room_keys, max_body=MAX_BODY),
    Route("PUT", V3(_KEYS + "/{room_id}/{session_id}"), put_key),
    Route("GET", V3(_KEYS), get_all_keys),
    Route("GET", V3(_KEYS + "/{room_id}"), get_room_keys),
    Route("GET", V3(_KEYS + "/{room_id}/{session_id}"), get_key),
    Route("DELETE", V3(_KEYS), delete_keys),
    Route("DELETE", V3(_KEYS + "/{room_id}"), delete_keys, name="delete_room_keys"),
    Route("DELETE", V3(_KEYS + "/{room_id}/{session_id}"), delete_keys, name="delete_key"),
]
