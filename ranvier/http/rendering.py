"""Answers and errors as status, headers and bytes: the one place where a ``MatrixError`` becomes HTTP."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from http import HTTPStatus

from ranvier.http.response import Response, encode
from ranvier.http.router import MethodNotAllowedError
from ranvier.spec.errors import MatrixError

Headers = list[tuple[bytes, bytes]]

# Source: client-server API, "Web Browser Clients".
CORS_HEADERS: Headers = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type, Authorization"),
    # A script in a browser reads no other header of an answer than these (and the simple ones).
    (b"access-control-expose-headers", b"Retry-After, ETag"),
]
PREFLIGHT = Response(204, b"", {"Access-Control-Max-Age": "86400"})
_BODILESS = frozenset({204, 304})
_STATUSES = frozenset(HTTPStatus)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_NO_STORE = (b"cache-control", b"no-store")


def status_line(status: int) -> bytes:
    """Give the first line of an answer."""
    phrase = HTTPStatus(status).phrase if status in _STATUSES else ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


@lru_cache(maxsize=512)
def json_head(length: int) -> bytes:
    """Give status line and headers of a 200 with JSON of a number of bytes: most answers."""
    return b"%bcontent-length: %d\r\n" % (_JSON_HEAD, length)


def render_head(response: Response, length: int | None) -> bytes:
    """Give status line and headers of a response; ``length`` in bytes, None where it is not known before.

    Raises ``ValueError`` for a header that would break out of its line.
    """
    own: dict[bytes, bytes] = {}
    for name, value in response.headers.items():
        if _CONTROLS.search(name + value):
            raise ValueError(f"header {name!r} holds a control character")
        own[name.lower().encode("latin-1")] = value.encode("latin-1")
    headers = list(CORS_HEADERS)
    if response.status not in _BODILESS:
        headers.append((b"content-type", response.content_type.encode("latin-1")))
        if length is not None:
            own[b"content-length"] = b"%d" % length
    if b"cache-control" not in own:
        headers.append(_NO_STORE)
    lines = [header for header in headers if header[0] not in own] + list(own.items())
    return status_line(response.status) + b"".join([b"%b: %b\r\n" % line for line in lines])


_JSON_HEAD = render_head(Response(), None)


def render_error(error: MatrixError) -> Response:
    """Make the answer for an error.

    Source: client-server API, "Standard error response", "Rate limiting".
    """
    headers: dict[str, str] = {}
    if error.status == 429 and "retry_after_ms" in error.fields:
        headers["Retry-After"] = str(math.ceil(error.fields["retry_after_ms"] / 1000))
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allow
    return Response(error.status, encode(error.body()), headers)


def render_unexpected(request_id: str) -> Response:
    """Make the answer for a mistake of ours; the log has the traceback under the same request id."""
    error = MatrixError("M_UNKNOWN", 500, f"Internal server error (request {request_id})")
    return render_error(error)
