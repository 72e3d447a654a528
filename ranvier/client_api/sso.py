"""Logging in at a provider (``m.login.sso``): out to it, back from it, and the choice of a name.

What a login needs to go on is in the browser's cookie: each of these requests may reach another worker.
Source: client-server API, "SSO client login/authentication".
"""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import quote

from ranvier.client_api.sso_pages import for_browsers, page, redirect
from ranvier.http.limits import RateLimiter, address_key
from ranvier.http.request import Request, parse_query
from ranvier.http.response import Response
from ranvier.http.route import Auth, Route, versions
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, forbidden, not_found
from ranvier.users.accounts import Account
from ranvier.users.client_urls import checked_url, origin_of, with_login_token
from ranvier.users.identities import Identity
from ranvier.users.login import SSO_TOKEN_LIFETIME_MS, Login
from ranvier.users.provider_http import ProofRefused, ProviderFailed
from ranvier.users.registration import Registration
from ranvier.users.sealed_steps import Step
from ranvier.users.sso import CALLBACK, Sso
from ranvier.users.uia import Uia

logger = logging.getLogger(__name__)

V3 = versions("v3", "r0")
PICK_USERNAME: Final = "/_synapse/client/pick_username/account_details"
GIVE_ACCESS: Final = "/_synapse/client/give_access"


@for_browsers
async def choose_provider(request: Request, *, sso: Sso | None) -> Response:
    """Send the browser to the provider; of several it is asked to which.

    Source: client-server API, ``GET /login/sso/redirect``.
    """
    assert sso is not None
    url = checked_url(request.str_param("redirectUrl"))
    if len(sso.providers) == 1:
        return await _begin(request, sso, next(iter(sso.providers)), url)
    ways = [
        (client.config.idp_name, f"redirect/{quote(name)}?redirectUrl={quote(url, safe='')}")
        for name, client in sso.providers.items()
    ]
    return page("providers", server_name=sso.server_name, providers=ways)


@for_browsers
async def redirect_to_provider(request: Request, *, sso: Sso | None) -> Response:
    """Send the browser to one provider. Source: ``GET /login/sso/redirect/{idpId}``."""
    assert sso is not None
    return await _begin(request, sso, request.params["idp_id"], checked_url(request.str_param("redirectUrl")))


async def _begin(request: Request, sso: Sso, idp_id: str, url: str) -> Response:
    client = sso.provider(idp_id)
    step = sso.steps.begin("login", client.config.idp_id, request.raw_headers, redirect_url=url)
    return redirect(await sso.login_url(step), sso.steps.cookie(step))


@for_browsers
async def come_back(
    request: Request,
    *,
    sso: Sso | None,
    login: Login,
    uia: Uia,
    limiter: RateLimiter,
    clock: Clock,
) -> Response:
    """Take who comes back from a provider, to log in or to confirm something.

    Who fails waits before the next attempt. A login that succeeds is counted where the client uses its token.
    """
    assert sso is not None
    step = sso.steps.find(request.str_param("state", ""), request.raw_headers, "login", "confirm")
    address = address_key(request.ip)
    limiter.check("rc_login.failed_attempts", address, clock.monotonic(), count=False)
    try:
        identity = await _identity(request, sso, step)
    except ProofRefused:
        limiter.count("rc_login.failed_attempts", address, clock.monotonic())
        raise
    if step.kind == "confirm":
        return await _confirm(sso, step, identity, uia)
    account = await sso.accounts.of(identity)
    if account is None:
        sso.check_may_register(identity)
        if not sso.may_choose_for(identity):
            return _ask_for_name(request, sso, step, identity)
        try:
            account = await _make(request, sso, identity, str(identity.localpart), limiter, clock)
        except MatrixError as error:
            if error.errcode != "M_USER_IN_USE":
                raise
            return _ask_for_name(request, sso, step, identity)
    return await _let_in(request, sso, step, account, login)


async def _identity(request: Request, sso: Sso, step: Step) -> Identity:
    """Find out who comes back. Source: OpenID Connect Core 1.0, 3.1.2.5 and 3.1.2.6."""
    error = request.str_param("error", "")
    if error == "access_denied":
        logger.info("A login was refused, %s: by the provider, or the person (access_denied)", step.provider)
        raise forbidden("You were not logged in there, or did not allow it")
    if error:
        raise ProviderFailed(f"{step.provider}: it sends people back with {error[:60]!a}")
    return await sso.identity(
        step,
        request.str_param("code", ""),
        request.str_param("iss", None),
        request.params.get("idp_id"),
    )


async def _confirm(sso: Sso, step: Step, identity: Identity, uia: Uia) -> Response:
    """Complete the stage of an authentication, if it is the user's own. Source: "Fallback"."""
    owner = await sso.accounts.owner(identity)
    question = await uia.question(step.uia_session)
    if question is None:
        raise not_found("What was to be confirmed is over. Begin anew in your app.")
    if owner != question.user_id:
        raise forbidden(f"You logged in there as somebody else than {question.user_id}")
    await uia.confirm(step.uia_session)
    return page("done", cookie=sso.steps.no_cookie(step))


def _ask_for_name(request: Request, sso: Sso, step: Step, identity: Identity) -> Response:
    step = sso.steps.choosing(step, identity)
    url = f"{_up(request)}pick_username/account_details?state={step.state}"
    return redirect(url, sso.steps.cookie(step))


def _up(request: Request) -> str:
    """Give the way from a callback, or from the form, to where the pages are: no page knows what is above."""
    return "../../" if "idp_id" in request.params else "../"


async def _make(
    request: Request, sso: Sso, identity: Identity, name: str, limiter: RateLimiter, clock: Clock
) -> Account:
    """Make an account, as often as ``rc_registration`` allows."""
    address = address_key(request.ip)
    limiter.check("rc_registration", address, clock.monotonic(), count=False)
    account = await sso.accounts.make(identity, name)
    limiter.count("rc_registration", address, clock.monotonic())
    return account


async def _let_in(request: Request, sso: Sso, step: Step, account: Account, login: Login) -> Response:
    """Give the client a login token; the user is asked first whether it may have one, unless it is trusted.

    "Homeservers SHOULD confirm with the user that they are happy to grant access to their matrix account to
    the site named in the redirectUrl."
    """
    if sso.is_trusted(step.redirect_url):
        return await _give_token(step, account.user_id, login, sso.steps.no_cookie(step))
    step, client = sso.steps.granting(step, account.user_id), origin_of(step.redirect_url)
    return page(
        "client",
        cookie=sso.steps.cookie(step),
        form_to=client,
        client=client,
        user_id=account.user_id,
        state=step.state,
        action=f"{_up(request)}give_access",
    )


@for_browsers
async def give_access(request: Request, *, sso: Sso | None, login: Login) -> Response:
    """Give the client a login token, of which its user has said that it may have it."""
    assert sso is not None
    state = parse_query(request.body).get("state", [""])[0]
    step = sso.steps.find(state, request.raw_headers, "client")
    cookie = sso.steps.cookie(sso.steps.granted(step))
    return await _give_token(step, step.user_id, login, cookie)


async def _give_token(step: Step, user_id: str, login: Login, cookie: str) -> Response:
    token, _ = await login.make_token(user_id, lifetime_ms=SSO_TOKEN_LIFETIME_MS)
    return redirect(with_login_token(step.redirect_url, token), cookie)


@for_browsers
async def ask_name(request: Request, *, sso: Sso | None, registration: Registration) -> Response:
    """Ask for the name of a new account."""
    assert sso is not None
    step = sso.steps.find(request.str_param("state", ""), request.raw_headers, "name")
    assert step.identity is not None
    name, wrong = step.identity.localpart or "", ""
    try:
        if name:
            await registration.check_available(name)
    except MatrixError as error:
        wrong = error.message
    return _name_page(sso, step, name, wrong)


@for_browsers
async def choose_name(
    request: Request, *, sso: Sso | None, login: Login, limiter: RateLimiter, clock: Clock
) -> Response:
    """Make the account of who has chosen a name."""
    assert sso is not None
    form = parse_query(request.body)
    step = sso.steps.find(form.get("state", [""])[0], request.raw_headers, "name")
    identity, name = step.identity, form.get("username", [""])[0].strip()
    assert identity is not None
    sso.check_may_register(identity)
    account = await sso.accounts.of(identity)  # of who sent the form twice
    try:
        account = account or await _make(request, sso, identity, name, limiter, clock)
    except MatrixError as error:
        if error.status != 400:
            raise
        return _name_page(sso, step, name, error.message, status=400)
    return await _let_in(request, sso, step, account, login)


def _name_page(sso: Sso, step: Step, name: str, wrong: str, *, status: int = 200) -> Response:
    return page(
        "username",
        status=status,
        form_to=origin_of(step.redirect_url),
        server_name=sso.server_name,
        state=step.state,
        name=name,
        wrong=wrong,
    )


ROUTES = [
    Route("GET", V3("/login/sso/redirect"), choose_provider, auth=Auth.NONE, follows=False),
    Route("GET", V3("/login/sso/redirect/{idp_id}"), redirect_to_provider, auth=Auth.NONE, follows=False),
    Route("GET", (f"/{CALLBACK}", f"/{CALLBACK}/{{idp_id}}"), come_back, auth=Auth.NONE),
    Route("GET", PICK_USERNAME, ask_name, auth=Auth.NONE),
    Route("POST", PICK_USERNAME, choose_name, auth=Auth.NONE, max_body=16384),
    Route("POST", GIVE_ACCESS, give_access, auth=Auth.NONE, max_body=16384),
]
