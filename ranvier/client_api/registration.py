"""Making accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ranvier.client_api.login import session_fields
from ranvier.http.limits import RateLimiter, address_key
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.log.clock import Clock
from ranvier.spec.errors import bad_json, forbidden, missing_param
from ranvier.spec.ids import domain_of, localpart_of
from ranvier.users.access_tokens import AccessTokens
from ranvier.users.devices import check_device_id
from ranvier.users.login import Sessions
from ranvier.users.registration import Registration, SharedSecret
from ranvier.users.registration_tokens import RegistrationTokens
from ranvier.users.requester import unknown_token
from ranvier.users.uia import Uia

V3 = versions("v3", "r0")
V1 = versions("v1")

OPERATION = "register"


class RegisterBody(msgspec.Struct):
    """What ``POST /register`` takes, without ``auth``."""

    username: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool | None = None
    refresh_token: bool | None = None
    type: str | None = None
    guest_access_token: str | None = None


class SharedSecretBody(msgspec.Struct):
    """What ``POST /_synapse/admin/v1/register`` takes."""

    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    displayname: str | None = None
    inhibit_login: bool = False
    refresh_token: bool = False


async def register(
    request: Request,
    *,
    registration: Registration,
    access_tokens: AccessTokens,
    sessions: Sessions,
    uia: Uia,
    limiter: RateLimiter,
    clock: Clock,
) -> dict[str, Any]:
    """Make an account and, unless that is not wished, a session. Source: ``POST /register``."""
    kind = request.choice_param("kind", ("user", "guest"), "user")
    given = await uia.first_body(request, request.json_object(allow_empty=True), OPERATION)
    body = _body(given)
    if body.type == "m.login.application_service":
        raise forbidden("No application service of this server has this access token")
    registration.check_enabled(kind)
    limiter.check("rc_registration", address_key(request.ip), clock.monotonic(), count=False)
    if kind == "guest":
        limiter.check("rc_registration", address_key(request.ip), clock.monotonic())
        return await _register_guest(body, registration, sessions)
    guest_id = await _upgraded_guest(body, access_tokens)
    localpart = await _wished_name(body, registration, guest_id)
    if body.password is not None:
        registration.check_password(body.password)
    if body.device_id is not None:
        check_device_id(body.device_id)
    passed = await uia.require(request, given, OPERATION, flows=registration.flows, keep_body=True)
    if body.password is None:
        raise missing_param("Missing 'password'")
    limiter.check("rc_registration", address_key(request.ip), clock.monotonic())
    if guest_id is not None:
        await registration.upgrade_guest(guest_id, body.password)
        user_id = guest_id
    else:
        user_id = await registration.register(
            localpart, body.password, registration_token=passed.registration_token
        )
    return await _answer(user_id, body, sessions)


def _body(given: Mapping[str, Any]) -> RegisterBody:
    try:
        return msgspec.convert(given, RegisterBody)
    except msgspec.ValidationError as error:
        raise bad_json(str(error)) from None


async def _wished_name(body: RegisterBody, registration: Registration, guest_id: str | None) -> str | None:
    """Check the name "before performing User-Interactive Authentication"."""
    if guest_id is not None:
        if body.username != localpart_of(guest_id):
            raise forbidden("'username' must be that of the guest")
        return None
    if body.username is None:
        return None
    localpart = registration.check_name(body.username)
    await registration.check_available(localpart, always=False)
    return localpart


async def _upgraded_guest(body: RegisterBody, access_tokens: AccessTokens) -> str | None:
    """Give the guest who becomes a user. Source: client-server API, "Guest Access"."""
    if body.guest_access_token is None:
        return None
    if not body.guest_access_token.isascii():
        raise unknown_token()
    guest = await access_tokens.authenticate(body.guest_access_token)
    if not guest.is_guest:
        raise forbidden("This access token is not of a guest")
    return guest.user_id


async def _register_guest(
    body: RegisterBody, registration: Registration, sessions: Sessions
) -> dict[str, Any]:
    # "all parameters in the request body with the exception of initial_device_display_name MUST BE ignored"
    user_id = await registration.register(None, guest=True)
    display_name = body.initial_device_display_name
    return await _answer(user_id, RegisterBody(initial_device_display_name=display_name), sessions)


async def _answer(user_id: str, body: RegisterBody, sessions: Sessions) -> dict[str, Any]:
    if body.inhibit_login:
        return {"user_id": user_id, "home_server": domain_of(user_id)}
    session = await sessions.begin(
        user_id,
        device_id=body.device_id,
        display_name=body.initial_device_display_name,
        refreshable=bool(body.refresh_token),
    )
    return session_fields(session)


async def get_available(
    request: Request, *, registration: Registration, limiter: RateLimiter, clock: Clock
) -> dict[str, Any]:
    """Say whether a name is free. Source: client-server API, ``GET /register/available``."""
    registration.check_enabled("user")
    limiter.check("rc_registration", address_key(request.ip), clock.monotonic(), count=False)
    await registration.check_available(registration.check_name(request.str_param("username")), always=False)
    return {"available": True}


async def get_token_validity(
    request: Request, *, registration: Registration, registration_tokens: RegistrationTokens
) -> dict[str, Any]:
    """Say whether a registration token is valid now."""
    registration.check_enabled("user")
    return {"valid": await registration_tokens.is_valid(request.str_param("token"))}


async def get_nonce(request: Request, *, shared_secret: SharedSecret) -> dict[str, Any]:
    """Give a nonce for a registration by shared secret."""
    return {"nonce": shared_secret.nonce()}


async def register_by_secret(
    request: Request, *, shared_secret: SharedSecret, registration: Registration, sessions: Sessions
) -> dict[str, Any]:
    """Make an account for somebody who knows the shared secret, whether registration is open or not."""
    body = request.json(SharedSecretBody)
    shared_secret.check(
        body.nonce, body.username, body.password, body.mac, admin=body.admin, user_type=body.user_type
    )
    registration.check_password(body.password)
    localpart = registration.check_name(body.username)
    user_id = await registration.register(
        localpart, body.password, admin=body.admin, display_name=body.displayname
    )
    wished = RegisterBody(inhibit_login=body.inhibit_login, refresh_token=body.refresh_token)
    return await _answer(user_id, wished, sessions)


ROUTES = [
    Route("POST", V3("/register"), register, auth=Auth.NONE, max_body=65536),
    Route("GET", V3("/register/available"), get_available, auth=Auth.NONE, name="register_available"),
    Route(
        "GET",
        V1("/register/m.login.registration_token/validity"),
        get_token_validity,
        auth=Auth.NONE,
        limit="rc_registration_token_validity",
    ),
    Route("GET", "/_synapse/admin/v1/register", get_nonce, auth=Auth.NONE, name="get_registration_nonce"),
    Route("POST", "/_synapse/admin/v1/register", register_by_secret, auth=Auth.NONE, max_body=65536),
]
