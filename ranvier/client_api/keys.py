"""Keys for end-to-end encryption.

Source: client-server API, "End-to-End Encryption", "Key management API".
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ranvier.http.request import Request
from ranvier.http.response import Result
from ranvier.http.route import Auth, Route, versions
from ranvier.spec.errors import invalid_param
from ranvier.users.cross_signing import USAGES, CrossSigning
from ranvier.users.device_keys import DeviceKeys
from ranvier.users.device_lists import DeviceLists
from ranvier.users.uia import Uia
from ranvier.wire.tokens import parse_token

V3 = versions("v3", "r0")
CROSS_SIGNING = versions("v3", "r0", "unstable")


class UploadBody(msgspec.Struct):
    """What a device publishes."""

    device_keys: dict[str, Any] | None = None
    one_time_keys: dict[str, Any] | None = None
    fallback_keys: dict[str, Any] | None = None


class QueryBody(msgspec.Struct):
    """Whose keys are asked for; ``timeout`` (ms) is for other servers."""

    device_keys: dict[str, list[str]]
    timeout: int = 10_000


class ClaimBody(msgspec.Struct):
    """Which keys are wanted: user to device to algorithm."""

    one_time_keys: dict[str, dict[str, str]]
    timeout: int = 10_000


def device_of(request: Request) -> str:
    """Give the device that makes a request. Raises 400 ``M_INVALID_PARAM`` for a user without one."""
    device_id = request.user.device_id
    if device_id is None:
        raise invalid_param("This needs an access token of a device")
    return device_id


async def upload_keys(request: Request, *, device_keys: DeviceKeys) -> Result:
    """Publish identity keys, one-time keys and fallback keys of the device that asks."""
    body = request.json(UploadBody, allow_empty=True)
    counts = await device_keys.upload(
        request.user.user_id,
        device_of(request),
        device_keys=body.device_keys,
        one_time_keys=body.one_time_keys,
        fallback_keys=body.fallback_keys,
    )
    return {"one_time_key_counts": orjson.Fragment(counts)}


async def query_keys(request: Request, *, device_keys: DeviceKeys) -> Result:
    """Give the identity keys of devices and the cross-signing keys of users."""
    return await device_keys.query(request.user.user_id, request.json(QueryBody).device_keys)


async def claim_keys(request: Request, *, device_keys: DeviceKeys) -> Result:
    """Give out one-time keys."""
    return await device_keys.claim(request.json(ClaimBody).one_time_keys)


async def key_changes(request: Request, *, device_lists: DeviceLists) -> Result:
    """Name the users whose keys changed, and those who are out of sight, after a token."""
    after = parse_token(request.str_param("from"), "from")
    # "This may be used by the server as a hint to check its caches are up to date."
    parse_token(request.str_param("to"), "to")
    changed, left = await device_lists.since(request.user.user_id, after.pos)
    return {"changed": list(changed), "left": list(left)}


async def upload_cross_signing_keys(request: Request, *, cross_signing: CrossSigning, uia: Uia) -> Result:
    """Publish cross-signing keys; who wants to replace some proves to be the user."""
    body = request.json_object()

    async def authenticate() -> None:
        # "except when used by an application service"
        if request.user.appservice_id is None:
            await uia.require(request, body, "replace cross-signing keys", may_skip=True)

    keys = {usage: body.get(f"{usage}_key") for usage in USAGES}
    await cross_signing.upload(request.user.user_id, keys, authenticate)
    return {}


async def upload_signatures(request: Request, *, cross_signing: CrossSigning) -> Result:
    """Add signatures to keys."""
    return {"failures": await cross_signing.sign(request.user.user_id, request.json_object())}


ROUTES = [
    Route("POST", V3("/keys/upload"), upload_keys, auth=Auth.GUEST, placed_by="user"),
    Route("POST", V3("/keys/query"), query_keys, auth=Auth.GUEST),
    Route("POST", V3("/keys/claim"), claim_keys, auth=Auth.GUEST),
    Route("GET", V3("/keys/changes"), key_changes, placed_by="user"),
    Route("POST", CROSS_SIGNING("/keys/device_signing/upload"), upload_cross_signing_keys),
    Route("POST", CROSS_SIGNING("/keys/signatures/upload"), upload_signatures),
]
