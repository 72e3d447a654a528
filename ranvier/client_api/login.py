"""Logging in, refreshing tokens and logging out."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.client_api.discovery import well_known_client
from ranvier.config import Config
from ranvier.config.sso import SsoConfig
from ranvier.http.limits import RateLimiter, address_key
from ranvier.http.request import Request
from ranvier.http.route import Auth, Route, versions
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, missing_param
from ranvier.spec.ids import domain_of
from ranvier.users.access_tokens import AccessTokens, IssuedTokens
from ranvier.users.login import Admitted, Login, Session, Sessions, typed_name
from ranvier.users.uia import Uia

V3 = versions("v3", "r0")
V1 = versions("v1")


class LoginBody(msgspec.Struct):
    """What ``POST /login`` takes."""

    type: str
    identifier: dict[str, Any] | None = None
    user: str | None = None
    medium: str | None = None
    address: str | None = None
    password: str | None = None
    token: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool | None = None


class RefreshBody(msgspec.Struct):
    """What ``POST /refresh`` takes."""

    refresh_token: str


async def get_flows(request: Request, *, config: Config) -> dict[str, Any]:
    """Say how one can log in. Source: client-server API, ``GET /login``."""
    flows: list[dict[str, Any]] = []
    if config.passwords.enabled_for_login:
        flows.append({"type": "m.login.password"})
    if config.sso.providers:
        flows.append({"type": "m.login.sso", "identity_providers": _identity_providers(config.sso)})
    flows.append({"type": "m.login.token", "get_login_token": config.users_can_confirm})
    return {"flows": flows}


def _identity_providers(sso: SsoConfig) -> list[dict[str, str]]:
    """Say what clients show of the providers. Source: client-server API, "m.login.sso flow schema"."""
    shown = []
    for provider in sso.providers:
        fields = {"id": provider.idp_id, "name": provider.idp_name}
        optional = {"icon": provider.idp_icon, "brand": provider.idp_brand}
        shown.append(fields | {key: value for key, value in optional.items() if value is not None})
    return shown


async def log_in(
    request: Request, *, login: Login, sessions: Sessions, limiter: RateLimiter, clock: Clock, config: Config
) -> dict[str, Any]:
    """Begin a session. Source: client-server API, ``POST /login``."""
    body = request.json(LoginBody)
    limiter.check("rc_login.address", address_key(request.ip), clock.monotonic())
    admitted = await _admitted(body, login, config)
    session = await sessions.begin(
        admitted.user_id,
        device_id=body.device_id,
        display_name=body.initial_device_display_name,
        refreshable=bool(body.refresh_token),
        password_hash=admitted.password_hash,
    )
    answer = session_fields(session)
    well_known = well_known_client(config)
    if well_known is not None:
        answer["well_known"] = well_known
    return answer


async def _admitted(body: LoginBody, login: Login, config: Config) -> Admitted:
    if body.type == "m.login.password" and config.passwords.enabled_for_login:
        if body.password is None:
            raise missing_param("Missing 'password'")
        return await login.with_password(typed_name(msgspec.structs.asdict(body)), body.password)
    if body.type == "m.login.token":
        if body.token is None:
            raise missing_param("Missing 'token'")
        return await login.with_token(body.token)
    if body.type == "m.login.application_service":
        raise MatrixError(
            "M_APPSERVICE_LOGIN_UNSUPPORTED", 400, "Application services can not log in as users here"
        )
    raise MatrixError("M_UNKNOWN", 400, "This server does not offer this type of login")


def session_fields(session: Session) -> dict[str, Any]:
    """Give what a client is told of its new session."""
    return {
        "user_id": session.user_id,
        "device_id": session.device_id,
        "home_server": domain_of(session.user_id),  # deprecated, and still read by some clients
        **token_fields(session.tokens),
    }


def token_fields(tokens: IssuedTokens) -> dict[str, Any]:
    """Give the fields of new tokens that there are."""
    return {name: value for name, value in msgspec.structs.asdict(tokens).items() if value is not None}


async def get_login_token(request: Request, *, uia: Uia, login: Login) -> dict[str, Any]:
    """Give a token to log in another client with. Source: ``POST /login/get_token``."""
    # "servers MUST always re-prompt the user": no grace, and each authentication is used up.
    passed = await uia.require(request, request.json_object(allow_empty=True), "make a login token")
    token, lifetime_ms = await login.make_token(request.user.user_id, password_hash=passed.password_hash)
    return {"login_token": token, "expires_in_ms": lifetime_ms}


async def refresh(request: Request, *, access_tokens: AccessTokens) -> dict[str, Any]:
    """Exchange a refresh token. Source: client-server API, ``POST /refresh``."""
    return token_fields(await access_tokens.refresh(request.json(RefreshBody).refresh_token))


async def log_out(request: Request, *, sessions: Sessions) -> bytes:
    """End the session of this request. Source: client-server API, ``POST /logout``."""
    await sessions.end(request.user)
    return b"{}"


async def log_out_all(request: Request, *, sessions: Sessions) -> bytes:
    """End all sessions of the user. Source: client-server API, ``POST /logout/all``."""
    await sessions.end_all(request.user.user_id)
    return b"{}"


ROUTES = [
    Route("GET", V3("/login"), get_flows, auth=Auth.NONE, name="get_login_flows"),
    Route("POST", V3("/login"), log_in, auth=Auth.NONE, max_body=65536),
    Route("POST", V1("/login/get_token"), get_login_token, limit="rc_login.account", max_body=65536),
    Route("POST", V3("/refresh"), refresh, auth=Auth.NONE, max_body=65536),
    Route("POST", V3("/logout"), log_out, auth=Auth.LOCKED),
    Route("POST", V3("/logout/all"), log_out_all, auth=Auth.LOCKED),
]
