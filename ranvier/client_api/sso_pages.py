"""The pages of single sign-on: small, for any browser, and with nothing of others' in them unescaped.

Jinja2 is imported with the first page: only a server with a provider shows any.
"""

from __future__ import annotations

import hashlib
import logging
import math
from base64 import b64encode
from collections.abc import Awaitable, Callable
from functools import cache, wraps
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.spec.errors import MatrixError
from ranvier.users.provider_http import ProviderFailed
from ranvier.users.sso import Sso

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger(__name__)

HTML: Final = "text/html; charset=utf-8"
Page = Callable[..., Awaitable[Response]]


def page(
    name: str, /, *, status: int = 200, cookie: str | None = None, form_to: str = "", **shown: Any
) -> Response:
    """Make a page of a template. A form in it may lead to ``form_to``, by way of this server."""
    text = _templates().get_template(f"{name}.html").render(**shown)
    return Response(status, text.encode(), _headers(form_to, cookie), HTML)


def redirect(url: str, cookie: str) -> Response:
    """Send the browser on."""
    headers = {"Location": url, "Set-Cookie": cookie, "Referrer-Policy": "no-referrer"}
    return Response(302, b"", headers, HTML)


def for_browsers(handler: Page) -> Page:
    """Make a handler that is there only with a provider, and whose errors are pages."""

    @wraps(handler)
    async def answer(request: Request, *, sso: Sso | None, **parts: Any) -> Response:
        if sso is None:
            raise MatrixError("M_UNRECOGNIZED", 404, "This server has no single sign-on")
        try:
            return await handler(request, sso=sso, **parts)
        except ProviderFailed as failure:
            logger.warning("A login at a provider failed, %s", failure)
            return problem(MatrixError("M_UNKNOWN", 502, _PROVIDER_FAILED))
        except MatrixError as error:
            return problem(error)

    return answer


_PROVIDER_FAILED: Final = "The login did not work at the other side. Try again, or ask who runs this server."


def problem(error: MatrixError) -> Response:
    """Show an error to a person."""
    shown = page("message", status=error.status, title="This did not work", text=error.message)
    if "retry_after_ms" not in error.fields:
        return shown
    retry = {"Retry-After": str(math.ceil(error.fields["retry_after_ms"] / 1000))}
    return Response(shown.status, shown.body, {**shown.headers, **retry}, HTML)


def _headers(form_to: str, cookie: str | None) -> dict[str, str]:
    policy = (
        "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {f'{_SELF} {form_to}' if form_to else _NONE}; "
        f"style-src {_hash('page.css')}; script-src {_hash('done.js')}"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return headers if cookie is None else {**headers, "Set-Cookie": cookie}


_SELF, _NONE = "'self'", "'none'"


@cache
def _file(name: str) -> str:
    return resources.files("ranvier.client_api").joinpath("pages", name).read_text(encoding="utf-8")


@cache
def _hash(name: str) -> str:
    """Name the one style, or script, that a page may have."""
    return f"'sha256-{b64encode(hashlib.sha256(_file(name).encode()).digest()).decode()}'"


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415 (only with a provider)
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update({"style": Markup(_file("page.css")), "script": Markup(_file("done.js"))})
    return environment
