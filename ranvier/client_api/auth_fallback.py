"""Stages of authentication that a browser does for a client. Source: client-server API, "Fallback"."""

from __future__ import annotations

from ranvier.client_api.sso_pages import for_browsers, page
from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.http.route import Auth, Route, versions
from ranvier.spec.errors import MatrixError, not_found
from ranvier.users.sso import Sso
from ranvier.users.uia import SSO, Uia

V3 = versions("v3", "r0")


@for_browsers
async def show_fallback(request: Request, *, sso: Sso | None, uia: Uia) -> Response:
    """Say what is to be confirmed, and lead to the provider by which the user logs in.

    "Simply redirecting the user to the SSO system is insufficient, since they may not realise what is being
    asked of them". The link has the state of the cookie in it, so that nobody else can make one.
    """
    assert sso is not None
    if request.params["auth_type"] != SSO:
        raise MatrixError("M_UNRECOGNIZED", 404, "This server has no page for this stage of authentication")
    session = request.str_param("session")
    question = await uia.question(session)
    if question is None:
        raise not_found("What was to be confirmed is over. Begin anew in your app.")
    linked = await sso.accounts.providers_of(question.user_id, list(sso.providers))
    if not linked:
        raise not_found("This account does not log in at another side")
    client = next(client for name, client in sso.providers.items() if name in linked)
    step = sso.steps.begin("confirm", client.config.idp_id, request.raw_headers, uia_session=session)
    return page(
        "confirm",
        cookie=sso.steps.cookie(step),
        what=question.what,
        user_id=question.user_id,
        provider=client.config.idp_name,
        url=await sso.login_url(step),
    )


ROUTES = [
    Route("GET", V3("/auth/{auth_type}/fallback/web"), show_fallback, auth=Auth.NONE),
]
