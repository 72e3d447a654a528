"""What server administrators do to accounts: look, suspend, lock."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.spec.errors import forbidden, invalid_param, not_found
from ranvier.storage.accounts import Account
from ranvier.storage.devices import Device
from ranvier.users.accounts import Accounts
from ranvier.users.devices import Devices

V3 = versions("v3", "r0")
V1 = versions("v1")


class SuspendBody(msgspec.Struct):
    """What ``PUT /admin/suspend/{userId}`` takes."""

    suspended: bool


class LockBody(msgspec.Struct):
    """What ``PUT /admin/lock/{userId}`` takes."""

    locked: bool


async def whois(request: Request, *, accounts: Accounts, devices: Devices) -> dict[str, Any]:
    """Give from where a user's devices were last seen. Source: ``GET /admin/whois/{userId}``."""
    user_id = request.params["user_id"]
    if user_id != request.user.user_id and not request.user.is_admin:
        raise forbidden("You are not a server admin")
    if await accounts.get(user_id) is None:
        raise not_found("User not found")
    return {
        "user_id": user_id,
        "devices": {
            device.device_id: {"sessions": [{"connections": _connections(device)}]}
            for device in await devices.of_user(user_id)
        },
    }


def _connections(device: Device) -> list[dict[str, Any]]:
    if device.last_seen_ts is None:
        return []
    return [
        {
            "ip": device.last_seen_ip or "",
            "last_seen": device.last_seen_ts,
            "user_agent": device.last_seen_agent or "",
        }
    ]


async def get_suspended(request: Request, *, accounts: Accounts) -> dict[str, Any]:
    """Say whether an account is suspended. Source: ``GET /admin/suspend/{userId}``."""
    return {"suspended": (await _target(request, accounts)).suspended}


async def set_suspended(request: Request, *, accounts: Accounts) -> dict[str, Any]:
    """Suspend an account or let it speak again. Source: ``PUT /admin/suspend/{userId}``."""
    suspended = request.json(SuspendBody).suspended
    account = await _target(request, accounts)
    await accounts.change(account.user_id, suspended=suspended)
    return {"suspended": suspended}


async def get_locked(request: Request, *, accounts: Accounts) -> dict[str, Any]:
    """Say whether an account is locked. Source: ``GET /admin/lock/{userId}``."""
    return {"locked": (await _target(request, accounts)).locked}


async def set_locked(request: Request, *, accounts: Accounts) -> dict[str, Any]:
    """Lock or unlock an account. Source: ``PUT /admin/lock/{userId}``."""
    locked = request.json(LockBody).locked
    account = await _target(request, accounts)
    await accounts.change(account.user_id, locked=locked)
    return {"locked": locked}


async def _target(request: Request, accounts: Accounts) -> Account:
    """Give the account in the path: of this server, in use, and not an administrator's."""
    user_id = request.params["user_id"]
    if not accounts.is_local(user_id):
        raise invalid_param("User does not belong to the local server")
    account = await accounts.get(user_id)
    if account is None or account.deactivated:
        raise not_found("User not found")
    if account.is_admin:  # whoever asks is one as well, so this is also about oneself
        raise forbidden("Administrators can not be suspended or locked")
    return account


ROUTES = [
    Route("GET", V3("/admin/whois/{user_id}"), whois),
    Route("GET", V1("/admin/suspend/{user_id}"), get_suspended, auth=Auth.ADMIN),
    Route("PUT", V1("/admin/suspend/{user_id}"), set_suspended, auth=Auth.ADMIN),
    Route("GET", V1("/admin/lock/{user_id}"), get_locked, auth=Auth.ADMIN),
    Route("PUT", V1("/admin/lock/{user_id}"), set_locked, auth=Auth.ADMIN),
]
