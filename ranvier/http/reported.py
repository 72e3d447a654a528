"""Who a client is, how it came and which request this is, as the proxy in front reports it."""

from __future__ import annotations

import re
from typing import Final

from ranvier.http.rendering import Headers

_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{2,45}")
_REQUEST_ID: Final = re.compile(rb"[0-9A-Za-z_-]{8,64}")
_SCHEMES: Final = ("http", "https")


def reported(headers: Headers) -> tuple[str | None, str | None]:
    """Give the client's address and the scheme that it used; None for what is not said, or is none.

    Source: the headers X-Forwarded-For and X-Forwarded-Proto, by which proxies go.
    """
    address = scheme = None
    # The first hop is the client; each proxy adds the one that it heard from.
    for name, value in reversed(headers):
        if name == b"x-forwarded-for":
            first = _first_hop(value)
            if _ADDRESS.fullmatch(first):
                address = first
        elif name == b"x-forwarded-proto" and _first_hop(value) in _SCHEMES:
            scheme = _first_hop(value)
    return address, scheme


def reported_id(headers: Headers) -> str | None:
    """Give what the proxy calls the request, each time that it sends it; None if it does not say.

    Source: the header X-Request-Id, by which proxies go.
    """
    value = next((value for name, value in headers if name == b"x-request-id"), b"")
    return value.decode() if _REQUEST_ID.fullmatch(value) else None


def _first_hop(value: bytes) -> str:
    return value.split(b",", 1)[0].strip().decode("latin-1")
