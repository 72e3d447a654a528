"""The errors that the specification documents for its endpoints, one by one through the whole server.

Source: client-server API v1.19, the responses of each endpoint.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess
from tests.server.request_examples import AUTH, PASSWORD, Scene, prepare

ROOM = "/v3/rooms/$room_id"
MINE, OTHERS = "/v3/user/$user_id", "/v3/user/$target"
NOWHERE = "!nowhere:test.localhost"
KEY = {"first_message_index": 0, "forwarded_count": 0, "is_verified": True, "session_data": {}}
MASTER = {"user_id": "$user_id", "usage": ["master"], "keys": {f"ed25519:{'A' * 43}": "A" * 43}}
SELF_SIGNING = {
    "user_id": "$user_id",
    "usage": ["self_signing"],
    "keys": {f"ed25519:{'B' * 43}": "B" * 43},
    "signatures": {"$user_id": {f"ed25519:{'A' * 43}": "C" * 86}},
}
THREAD = {"rel_type": "m.thread", "event_id": "$event_id"}

# Who asks (user: the scene's, stranger: in none of the rooms), what, and what must come back.
CASES: list[tuple[str, str, str, Any, int, str]] = [
    ("user", "PUT", f"{MINE}/account_data/x", [], 400, "M_BAD_JSON"),
    ("user", "PUT", f"{OTHERS}/account_data/x", {}, 403, "M_FORBIDDEN"),
    ("user", "GET", f"{OTHERS}/account_data/x", None, 403, "M_FORBIDDEN"),
    ("user", "PUT", f"{MINE}/account_data/m.push_rules", {}, 405, "M_BAD_JSON"),
    ("user", "PUT", f"{MINE}/account_data/m.fully_read", {}, 405, "M_BAD_JSON"),
    ("user", "GET", f"{MINE}/account_data/nothing", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", f"{MINE}/rooms/no-room/account_data/x", {}, 400, "M_INVALID_PARAM"),
    ("user", "GET", f"{MINE}/rooms/no-room/account_data/x", None, 400, "M_INVALID_PARAM"),
    ("user", "PUT", f"{OTHERS}/rooms/$room_id/account_data/x", {}, 403, "M_FORBIDDEN"),
    ("user", "PUT", f"{MINE}/rooms/$room_id/account_data/m.fully_read", {}, 405, "M_BAD_JSON"),
    ("user", "GET", f"{MINE}/rooms/$room_id/account_data/nothing", None, 404, "M_NOT_FOUND"),
    ("user", "GET", f"{OTHERS}/rooms/$room_id/tags", None, 403, "M_FORBIDDEN"),
    ("user", "PUT", f"{OTHERS}/rooms/$room_id/tags/u.x", {}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"{OTHERS}/filter", {}, 403, "M_FORBIDDEN"),
    ("user", "GET", f"{MINE}/filter/none", None, 404, "M_NOT_FOUND"),
    ("user", "POST", f"{OTHERS}/openid/request_token", {}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", f"{ROOM}/ban", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("target", "POST", f"{ROOM}/ban", {"user_id": "$user_id"}, 403, "M_FORBIDDEN"),
    ("target", "POST", f"{ROOM}/unban", {"user_id": "$stranger"}, 403, ""),
    ("user", "POST", f"{ROOM}/kick", {"user_id": "$stranger"}, 403, ""),
    ("stranger", "POST", f"{ROOM}/kick", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"{ROOM}/ban", {}, 400, "M_BAD_JSON"),
    ("user", "POST", "/v3/createRoom", {"room_alias_name": "$localpart"}, 400, "M_ROOM_IN_USE"),
    ("user", "POST", "/v3/createRoom", {"room_version": "no"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
    ("user", "POST", "/v3/createRoom", {"name": 7}, 400, "M_BAD_JSON"),
    (
        "user",
        "POST",
        "/v3/createRoom",
        {
            "name": "n",
            "room_version": "11",
            "power_level_content_override": {"users": {"$user_id": 0}, "events": {"m.room.name": 100}},
        },
        400,
        "M_INVALID_ROOM_STATE",
    ),
    (
        "user",
        "POST",
        "/v3/keys/device_signing/upload",
        {"self_signing_key": SELF_SIGNING, "auth": AUTH},
        400,
        "M_MISSING_PARAM",
    ),
    (
        "user",
        "POST",
        "/v3/keys/device_signing/upload",
        {"master_key": MASTER, "self_signing_key": SELF_SIGNING, "auth": AUTH},
        400,
        "M_INVALID_SIGNATURE",
    ),
    ("user", "GET", "/v3/devices/NONE", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/devices/NONE", {"display_name": "d"}, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/directory/room/no-alias", {"room_id": "$room_id"}, 400, "M_INVALID_PARAM"),
    ("user", "PUT", "/v3/directory/room/$alias", {"room_id": "$room_id"}, 409, ""),
    ("user", "GET", "/v3/directory/room/no-alias", None, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v3/directory/room/%23none:test.localhost", None, 404, "M_NOT_FOUND"),
    ("user", "DELETE", "/v3/directory/room/%23none:test.localhost", None, 404, "M_NOT_FOUND"),
    ("stranger", "GET", f"{ROOM}/aliases", None, 403, "M_FORBIDDEN"),
    ("stranger", "GET", f"{ROOM}/context/$event_id", None, 404, "M_NOT_FOUND"),
    ("user", "POST", f"{ROOM}/invite", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", f"{ROOM}/invite", {"user_id": "$stranger"}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"{ROOM}/invite", {}, 400, "M_BAD_JSON"),
    ("stranger", "POST", "/v3/rooms/$knock_room/join", {}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", "/v3/join/$knock_room", {}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", f"/v3/join/{NOWHERE}", {}, 404, "M_NOT_FOUND"),
    ("stranger", "POST", "/v3/knock/$room_id", {}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", f"/v3/knock/{NOWHERE}", {}, 404, "M_NOT_FOUND"),
    ("user", "POST", f"{ROOM}/forget", {}, 400, "M_UNKNOWN"),
    ("user", "POST", f"/v3/rooms/{NOWHERE}/leave", {}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"/v3/rooms/{NOWHERE}/invite", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"/v3/rooms/{NOWHERE}/kick", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"/v3/rooms/{NOWHERE}/ban", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("user", "POST", f"/v3/rooms/{NOWHERE}/unban", {"user_id": "$target"}, 403, "M_FORBIDDEN"),
    ("stranger", "POST", f"{ROOM}/leave", {}, 403, "M_FORBIDDEN"),
    ("stranger", "GET", "/v3/room_keys/version", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/room_keys/version/999", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/room_keys/version/999", {"algorithm": "a", "auth_data": {}}, 404, "M_NOT_FOUND"),
    (
        "user",
        "PUT",
        "/v3/room_keys/version/$version",
        {"algorithm": "another", "auth_data": {}},
        400,
        "M_INVALID_PARAM",
    ),
    ("user", "DELETE", "/v3/room_keys/version/999", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/room_keys/keys/$room_id/s?version=999", KEY, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/room_keys/keys/$room_id/none?version=$version", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/room_keys/keys?version=999", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/room_keys/keys", None, 400, "M_MISSING_PARAM"),
    ("user", "DELETE", "/v3/room_keys/keys?version=999", None, 404, "M_NOT_FOUND"),
    ("user", "GET", f"/v3/directory/list/room/{NOWHERE}", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", f"/v3/directory/list/room/{NOWHERE}", {}, 404, "M_NOT_FOUND"),
    ("target", "PUT", "/v3/directory/list/room/$room_id", {}, 403, "M_FORBIDDEN"),
    ("user", "POST", "/v3/login", {"type": "no"}, 400, "M_UNKNOWN"),
    (
        "user",
        "POST",
        "/v3/login",
        {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "$user_id"}, "password": ""},
        403,
        "M_FORBIDDEN",
    ),
    ("user", "POST", "/v3/login", {"type": "m.login.token", "token": "no"}, 403, "M_FORBIDDEN"),
    (
        "user",
        "POST",
        "/v3/login",
        {"type": "m.login.application_service"},
        400,
        "M_APPSERVICE_LOGIN_UNSUPPORTED",
    ),
    ("user", "POST", "/v3/refresh", {"refresh_token": "no"}, 401, "M_UNKNOWN_TOKEN"),
    ("user", "POST", "/v1/login/get_token", {}, 401, ""),
    ("user", "POST", "/v3/account/password", {"new_password": "a long password"}, 401, ""),
    ("user", "POST", "/v3/account/deactivate", {}, 401, ""),
    ("user", "DELETE", "/v3/devices/X", {}, 401, ""),
    ("user", "POST", "/v3/delete_devices", {"devices": []}, 401, ""),
    ("user", "POST", "/v3/register", {}, 401, ""),
    ("stranger", "GET", "/v3/rooms/$knock_room/messages?dir=b", None, 403, "M_FORBIDDEN"),
    ("user", "GET", f"{ROOM}/messages", None, 400, "M_MISSING_PARAM"),
    ("user", "GET", "/v1/mutual_rooms?user_id=$user_id", None, 400, ""),
    ("user", "GET", "/v1/mutual_rooms", None, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v1/mutual_rooms?user_id=$target&from=no", None, 400, "M_INVALID_PARAM"),
    ("user", "PUT", "/v3/presence/$target/status", {"presence": "online"}, 403, "M_FORBIDDEN"),
    ("user", "PUT", "/v3/presence/$user_id/status", {"presence": "asleep"}, 400, ""),
    ("user", "PUT", "/v3/profile/$user_id/displayname", {}, 400, "M_MISSING_PARAM"),
    ("user", "PUT", "/v3/profile/$user_id/x.y", {"x.y": "v" * 70_000}, 400, "M_PROFILE_TOO_LARGE"),
    ("user", "PUT", f"/v3/profile/$user_id/{'k' * 256}", {"k" * 256: 1}, 400, "M_KEY_TOO_LARGE"),
    ("user", "PUT", "/v3/profile/$target/displayname", {"displayname": "d"}, 403, "M_FORBIDDEN"),
    ("user", "DELETE", "/v3/profile/$target/displayname", None, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v3/profile/$user_id/none", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/profile/@nobody:test.localhost", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/pushrules/global/override/none", None, 404, "M_NOT_FOUND"),
    ("user", "DELETE", "/v3/pushrules/global/override/none", None, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/pushrules/global/override/.m.no", {"actions": []}, 400, ""),
    ("user", "PUT", "/v3/pushrules/global/override/x", {}, 400, ""),
    ("user", "PUT", "/v3/pushrules/global/override/none/enabled", {"enabled": True}, 404, "M_NOT_FOUND"),
    ("user", "PUT", "/v3/pushrules/global/override/none/actions", {"actions": []}, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/pushrules/global/override/none/enabled", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v3/pushrules/global/override/none/actions", None, 404, "M_NOT_FOUND"),
    ("user", "POST", f"{ROOM}/receipt/m.read/$event_id", {"thread_id": ""}, 400, "M_INVALID_PARAM"),
    ("user", "POST", f"{ROOM}/receipt/m.read/$event_id", {"thread_id": "$other"}, 400, "M_INVALID_PARAM"),
    ("user", "POST", f"{ROOM}/receipt/m.fully_read/$event_id", {"thread_id": "main"}, 400, "M_INVALID_PARAM"),
    ("user", "POST", f"{ROOM}/receipt/no/$event_id", {}, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v3/register/available?username=$localpart", None, 400, "M_USER_IN_USE"),
    ("user", "GET", "/v3/register/available?username=A%20b", None, 400, "M_INVALID_USERNAME"),
    ("user", "POST", "/v3/register", {"username": "$localpart"}, 400, "M_USER_IN_USE"),
    ("user", "POST", "/v3/register", {"username": "é"}, 400, "M_INVALID_USERNAME"),
    ("user", "POST", "/v3/register?kind=no", {}, 400, ""),
    ("user", "GET", "/v1/rooms/$room_id/relations/$none", None, 404, "M_NOT_FOUND"),
    ("stranger", "GET", "/v1/rooms/$knock_room/threads", None, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v1/rooms/$room_id/threads?from=no", None, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v1/rooms/$room_id/timestamp_to_event?ts=0&dir=b", None, 404, "M_NOT_FOUND"),
    ("user", "GET", "/v1/rooms/$room_id/timestamp_to_event?dir=b", None, 400, "M_MISSING_PARAM"),
    ("stranger", "PUT", f"{ROOM}/send/m.room.message/t1", {"body": "b"}, 403, "M_FORBIDDEN"),
    (
        "user",
        "PUT",
        f"{ROOM}/state/m.room.canonical_alias/",
        {"alias": "no-alias"},
        400,
        "M_INVALID_PARAM",
    ),
    (
        "user",
        "PUT",
        f"{ROOM}/state/m.room.canonical_alias/",
        {"alias": "#none:test.localhost"},
        400,
        "M_BAD_ALIAS",
    ),
    ("target", "PUT", f"{ROOM}/state/m.room.name/", {"name": "n"}, 403, "M_FORBIDDEN"),
    ("user", "GET", f"/v1/room_summary/{NOWHERE}", None, 404, "M_NOT_FOUND"),
    ("stranger", "GET", "/v1/room_summary/$private_room", None, 404, "M_NOT_FOUND"),
    ("user", "POST", f"{ROOM}/upgrade", {"new_version": "no"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
    ("target", "POST", f"{ROOM}/upgrade", {"new_version": "11"}, 403, "M_FORBIDDEN"),
    ("user", "GET", f"{ROOM}/event/$none", None, 404, "M_NOT_FOUND"),
    ("stranger", "GET", f"{ROOM}/event/$event_id", None, 404, "M_NOT_FOUND"),
    ("user", "GET", f"{ROOM}/state/no.type/", None, 404, "M_NOT_FOUND"),
    ("stranger", "GET", f"{ROOM}/state/m.room.create/", None, 403, "M_FORBIDDEN"),
    ("stranger", "GET", f"{ROOM}/state", None, 403, "M_FORBIDDEN"),
    ("stranger", "GET", f"{ROOM}/members", None, 403, "M_FORBIDDEN"),
    ("stranger", "GET", f"{ROOM}/joined_members", None, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v1/rooms/$room_id/hierarchy?from=no", None, 400, "M_INVALID_PARAM"),
    ("stranger", "GET", "/v1/rooms/$private_room/hierarchy", None, 403, "M_FORBIDDEN"),
    ("user", "GET", f"/v1/rooms/{NOWHERE}/hierarchy", None, 403, "M_FORBIDDEN"),
    ("stranger", "PUT", f"{ROOM}/typing/$stranger", {"typing": True, "timeout": 9}, 403, "M_FORBIDDEN"),
    ("user", "PUT", f"{ROOM}/typing/$target", {"typing": True, "timeout": 9}, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v3/sync?filter=none", None, 400, ""),
    ("user", "GET", "/v3/sync?since=no", None, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v3/sync?set_presence=asleep", None, 400, ""),
    ("user", "POST", "/v3/publicRooms", {"since": "no"}, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v3/keys/changes?from=no&to=no", None, 400, "M_INVALID_PARAM"),
    ("user", "GET", "/v3/keys/changes", None, 400, "M_MISSING_PARAM"),
    ("user", "GET", "/v3/notifications?from=no", None, 400, "M_INVALID_PARAM"),
    ("user", "PUT", "/v3/sendToDevice/x/t", {}, 400, ""),
    ("user", "GET", "/v1/admin/lock/$target", None, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v3/admin/whois/$target", None, 403, "M_FORBIDDEN"),
    ("user", "GET", "/v3/no/such/path", None, 404, "M_UNRECOGNIZED"),
    ("user", "PUT", "/v3/sync", {}, 405, "M_UNRECOGNIZED"),
]


async def _scene(server: ServerProcess, users: list[HttpClient]) -> tuple[Scene, dict[str, HttpClient]]:
    target, stranger, user = users
    async with HttpClient(server.url) as other:
        scene = await prepare(other, server_name=server.server_name, target=target, stranger=stranger)
    user.token, user.user_id, user.device_id = other.token, other.user_id, other.device_id
    scene.values |= {
        "localpart": user.user_id[1:].split(":")[0],
        "none": "$none",
        "other": "$another",
        "private_room": await target.create_room(preset="private_chat"),
    }
    return scene, {"user": user, "target": target, "stranger": stranger}


async def _outcome(scene: Scene, client: HttpClient, method: str, path: str, body: Any) -> tuple[int, str]:
    # The longest names first: "$room_id" must not be read as a shorter name and a rest.
    for name in sorted(scene.values, key=len, reverse=True):
        path = path.replace(f"${name}", quote(scene.values[name], safe=""))
    try:
        await client.request(method, path, scene.filled(body))
    except Refused as error:
        return error.status, error.errcode or ""
    return 200, ""


async def test_documented_errors(server: ServerProcess, users: list[HttpClient]) -> None:
    """A client would get another error than the one that it was written to handle, or none."""
    scene, people = await _scene(server, users)
    wrong = []
    for who, method, path, body, status, errcode in CASES:
        got = await _outcome(scene, people[who], method, path, body)
        if got[0] != status or errcode not in ("", got[1]):
            wrong.append(f"{who} {method} {path} {body}: {got}, not {status} {errcode}")
    assert not wrong, "\n".join(wrong)


async def test_backup_of_another_version_names_the_current_one(users: list[HttpClient]) -> None:
    """A device that still writes into an old backup would not learn which one is current."""
    user = users[0]
    old, new = [
        (await user.post("/v3/room_keys/version", {"algorithm": "a", "auth_data": {}}))["version"]
        for _ in range(2)
    ]
    with pytest.raises(Refused) as refused:
        await user.request("PUT", "/v3/room_keys/keys/!r:x/s", KEY, version=old)
    assert (refused.value.status, refused.value.errcode) == (403, "M_WRONG_ROOM_KEYS_VERSION")
    assert refused.value.body["current_version"] == new
    await user.request("DELETE", f"/v3/room_keys/version/{old}")
    await user.request("DELETE", f"/v3/room_keys/version/{old}")  # deleted before: "should succeed"


async def test_reacting_twice_alike_is_refused(users: list[HttpClient]) -> None:
    """A reaction that was sent twice would be counted twice."""
    user = users[0]
    room_id = await user.create_room()
    event_id = await user.send(room_id, "hello")
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": "+"}}
    path = f"/v3/rooms/{quote(room_id)}/send/m.reaction/"
    await user.put(path + "one", reaction)
    with pytest.raises(Refused) as refused:
        await user.put(path + "two", reaction)
    assert (refused.value.status, refused.value.errcode) == (400, "M_DUPLICATE_ANNOTATION")


async def test_a_device_called_like_a_cross_signing_key_is_refused(users: list[HttpClient]) -> None:
    """A login could take the name of a key by which a user is verified, or the reverse."""
    user = users[0]
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.user_id},
        "password": PASSWORD,
    }
    master = {"user_id": user.user_id, "usage": ["master"], "keys": {f"ed25519:{'A' * 43}": "A" * 43}}
    await user.post("/v3/keys/device_signing/upload", {"master_key": master, "auth": auth})
    with pytest.raises(Refused) as refused:
        await user.post("/v3/login", {**auth, "device_id": "A" * 43})
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
    await user.post("/v3/login", {**auth, "device_id": "B" * 43})
    renewed = {**master, "keys": {f"ed25519:{'B' * 43}": "B" * 43}}
    with pytest.raises(Refused) as refused:
        await user.post("/v3/keys/device_signing/upload", {"master_key": renewed, "auth": auth})
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
