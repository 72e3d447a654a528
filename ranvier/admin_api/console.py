"""``/_ranvier/``: the cluster live in a browser, and what the page and ``ranvier status`` read.

Administrators use it with their access token, which the page asks for. On a UNIX socket that only they can
open, nobody is asked (``PRIVATE_ROUTES``). There a browser may come in through a tunnel, and with it whatever
page is open beside this one: the API and the metrics there answer only requests that no other page can make.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, Final

from ranvier.cluster.overview import API, DRAIN, RESTART, Overview
from ranvier.http.metrics import METRICS_ROUTES, Metrics, get_metrics
from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.http.route import Auth, Handler, Route
from ranvier.spec.errors import forbidden, not_found

PAGE: Final = "/_ranvier/"
GUARD: Final = "x-ranvier-console"
"""A header that a script of another page is not allowed to send (its preflight is refused)."""

_FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "plot.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def _file(name: str) -> bytes:
    return resources.files("ranvier.admin_api").joinpath("static", name).read_bytes()


async def get_page(request: Request) -> Response:
    """Give the page; there is nothing secret in it."""
    return Response(200, _file("index.html"), _HEADERS, _FILES["index.html"])


async def get_page_file(request: Request) -> Response:
    """Give what the page is made of."""
    name = request.params["name"]
    if name not in _FILES:
        raise not_found("There is no such file")
    return Response(200, _file(name), _HEADERS, _FILES[name])


async def redirect_to_page(request: Request) -> Response:
    """Put the slash behind it, which the page's own links need."""
    return Response(308, b"", {"Location": PAGE}, "text/plain")


async def get_status(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Tell how every worker is, and the log, PostgreSQL and Redis; ``history=true`` adds the last minutes."""
    return await overview.status(with_history=request.bool_param("history"))


async def drain_worker(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Have a worker take nothing new."""
    await overview.workers.act(request.params["name"], DRAIN)
    return {}


async def restart_worker(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Have a worker finish what it does and start again."""
    await overview.workers.act(request.params["name"], RESTART)
    return {}


async def get_status_privately(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Tell how the server is, on a private socket."""
    _check_private(request)
    return await get_status(request, overview=overview)


async def drain_worker_privately(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Have a worker take nothing new, asked on a private socket."""
    _check_private(request)
    return await drain_worker(request, overview=overview)


async def restart_worker_privately(request: Request, *, overview: Overview) -> dict[str, Any]:
    """Have a worker start again, asked on a private socket."""
    _check_private(request)
    return await restart_worker(request, overview=overview)


async def get_metrics_privately(request: Request, *, metrics: Metrics) -> Response:
    """Give what Prometheus is given, asked on a private socket."""
    _check_private(request)
    return await get_metrics(request, metrics=metrics)


def _check_private(request: Request) -> None:
    """Refuse what another page in the administrator's browser may have sent. Raises ``M_FORBIDDEN``."""
    if GUARD not in request.headers:
        raise forbidden(f"On a private listener each request needs the header {GUARD}: 1")
    if not _is_local_name(request.headers.get("host", "")):
        # Whoever owns a name may let it point to the tunnel's end, and their page be of its origin.
        raise forbidden("On a private listener the host must be localhost or an address")


def _is_local_name(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_PAGE_ROUTES: Final = [
    Route("GET", "/_ranvier", redirect_to_page, auth=Auth.NONE, name="console", follows=False),
    Route("GET", PAGE, get_page, auth=Auth.NONE, name="console", follows=False),
    Route("GET", "/_ranvier/page/{name}", get_page_file, auth=Auth.NONE, name="console", follows=False),
]
ROUTES: Final = [
    *_PAGE_ROUTES,
    Route("GET", f"{API}/status", get_status, auth=Auth.ADMIN, name="console_status", follows=False),
    Route(
        "POST",
        f"{API}/workers/{{name}}/drain",
        drain_worker,
        auth=Auth.ADMIN,
        max_body=1024,
        follows=False,
    ),
    Route(
        "POST",
        f"{API}/workers/{{name}}/restart",
        restart_worker,
        auth=Auth.ADMIN,
        max_body=1024,
        follows=False,
    ),
]
"""The page and its API for administrators with an access token."""

_PRIVATELY: Final[dict[Handler, Handler]] = {
    get_status: get_status_privately,
    drain_worker: drain_worker_privately,
    restart_worker: restart_worker_privately,
}
PRIVATE_ROUTES: Final = [
    replace(route, handler=_PRIVATELY.get(route.handler, route.handler), auth=Auth.NONE) for route in ROUTES
]
"""The same for a socket that only administrators can open."""
PRIVATE_METRICS_ROUTES: Final = [replace(route, handler=get_metrics_privately) for route in METRICS_ROUTES]
"""Metrics at such a socket."""
