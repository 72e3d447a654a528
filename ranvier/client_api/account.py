"""One's own account: who one is, password, deactivation, third-party ids, OpenID."""

from __future__ import annotations

from typing import Any

from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.spec.errors import bad_json, forbidden, missing_param
from ranvier.users.accounts import Accounts
from ranvier.users.deactivation import Deactivation
from ranvier.users.login import Sessions
from ranvier.users.openid import OpenIdTokens
from ranvier.users.registration import Registration
from ranvier.users.uia import Uia

V3 = versions("v3", "r0")


async def whoami(request: Request) -> dict[str, Any]:
    """Say whose the access token is. Source: client-server API, ``GET /account/whoami``."""
    requester = request.user
    answer: dict[str, Any] = {"user_id": requester.user_id, "is_guest": requester.is_guest}
    if requester.device_id is not None:
        answer["device_id"] = requester.device_id
    return answer


async def change_password(
    request: Request, *, uia: Uia, accounts: Accounts, registration: Registration, sessions: Sessions
) -> bytes:
    """Set a new password, and log out all other devices unless that is not wished.

    Source: client-server API, ``POST /account/password``.
    """
    body = request.json_object()
    logout_devices = body.get("logout_devices", True)
    new_password = body.get("new_password")
    if not isinstance(logout_devices, bool) or not isinstance(new_password, str | None):
        raise bad_json("'new_password' must be a string and 'logout_devices' true or false")
    if new_password is not None:
        registration.check_password(new_password)
    passed = await uia.require(request, body, "change the password")
    if new_password is None:
        raise missing_param("Missing 'new_password'")
    await accounts.set_password(request.user.user_id, new_password, replaced=passed.password_hash)
    if logout_devices:
        await sessions.end_others(request.user)
    return b"{}"


async def deactivate(request: Request, *, uia: Uia, deactivation: Deactivation) -> dict[str, Any]:
    """End the account. Source: client-server API, ``POST /account/deactivate``."""
    body = request.json_object(allow_empty=True)
    erase = body.get("erase", False)
    if not isinstance(erase, bool):
        raise bad_json("'erase' must be true or false")
    await uia.require(request, body, "deactivate the account")
    await deactivation.deactivate(request.user.user_id, erase=erase)
    # "This must be success if the homeserver has no identifiers to unbind for the user."
    return {"id_server_unbind_result": "success"}


async def get_third_party_ids(request: Request) -> dict[str, Any]:
    """Give the email addresses and phone numbers of the account: none can be added.

    Source: client-server API, ``GET /account/3pid``.
    """
    return {"threepids": []}


async def request_openid_token(
    request: Request, *, openid_tokens: OpenIdTokens, accounts: Accounts
) -> dict[str, Any]:
    """Give a token that proves to others who one is. Source: client-server API, "OpenID"."""
    if request.params["user_id"] != request.user.user_id:
        raise forbidden("This is not your user ID")
    token, expires_in = await openid_tokens.issue(request.user.user_id)
    return {
        "access_token": token,
        "token_type": "Bearer",
        "matrix_server_name": accounts.server_name,
        "expires_in": expires_in,
    }


ROUTES = [
    Route("GET", V3("/account/whoami"), whoami, auth=Auth.GUEST),
    Route("POST", V3("/account/password"), change_password, max_body=65536),
    Route("POST", V3("/account/deactivate"), deactivate, max_body=65536),
    Route("GET", V3("/account/3pid"), get_third_party_ids),
    Route("POST", V3("/user/{user_id}/openid/request_token"), request_openid_token),
]
