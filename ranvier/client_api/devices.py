"""The devices of the user who asks. Source: client-server API, "Device Management"."""

from __future__ import annotations

from typing import Any, Final

from ranvier.http.limits import RateLimiter
from ranvier.http.request import Request
from ranvier.http.response import Response, Result
from ranvier.http.route import Auth, Route, versions
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, bad_json
from ranvier.storage.devices import Device
from ranvier.users.devices import Devices
from ranvier.users.uia import Uia

V3 = versions("v3", "r0")
MAX_DEVICES: Final = 1000
"""How many devices one request may delete."""


def _shown(device: Device) -> dict[str, Any]:
    shown = {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ts,
    }
    return {key: value for key, value in shown.items() if value is not None}


async def list_devices(request: Request, *, devices: Devices) -> Result:
    """Give all devices."""
    return {"devices": [_shown(device) for device in await devices.of_user(request.user.user_id)]}


async def get_device(request: Request, *, devices: Devices) -> Result:
    """Give one device."""
    return _shown(await devices.get(request.user.user_id, request.params["device_id"]))


async def put_device(request: Request, *, devices: Devices, limiter: RateLimiter, clock: Clock) -> Result:
    """Rename a device; an application service makes it if it is not there."""
    user_id, device_id = request.user.user_id, request.params["device_id"]
    name = request.json_object().get("display_name")
    if name is not None and not isinstance(name, str):
        raise bad_json("'display_name' must be a string")
    if request.user.appservice_id is not None:
        # "This endpoint is rate-limited for device creation. Servers MAY use login rate limits."
        if request.user.rate_limited:
            limiter.check("rc_login.account", user_id, clock.monotonic())
        if await devices.create(user_id, device_id, name):
            return Response(201)
    if name is not None:
        await devices.rename(user_id, device_id, name)
    else:
        await devices.get(user_id, device_id)
    return {}


async def delete_device(request: Request, *, devices: Devices, uia: Uia) -> Result:
    """Delete one device; one that is gone is no error."""
    body = request.json_object(allow_empty=True)
    # "except when used by an application service"
    if request.user.appservice_id is None:
        await uia.require(request, body, "remove a device", may_skip=True)
    await devices.delete(request.user.user_id, [request.params["device_id"]])
    return {}


async def delete_devices(request: Request, *, devices: Devices, uia: Uia) -> Result:
    """Delete several devices."""
    body = request.json_object()
    device_ids = body.get("devices")
    if not isinstance(device_ids, list) or not all(isinstance(device_id, str) for device_id in device_ids):
        raise bad_json("'devices' must be a list of device IDs")
    if len(device_ids) > MAX_DEVICES:
        raise MatrixError("M_TOO_LARGE", 413, f"At most {MAX_DEVICES} devices are deleted at once")
    if request.user.appservice_id is None:
        await uia.require(request, body, "remove devices", may_skip=True)
    await devices.delete(request.user.user_id, device_ids)
    return {}


ROUTES = [
    Route("GET", V3("/devices"), list_devices, auth=Auth.GUEST),
    Route("GET", V3("/devices/{device_id}"), get_device, auth=Auth.GUEST),
    Route("PUT", V3("/devices/{device_id}"), put_device, auth=Auth.GUEST),
    Route("DELETE", V3("/devices/{device_id}"), delete_device),
    Route("POST", V3("/delete_devices"), delete_devices),
]
