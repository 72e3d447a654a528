"""Answers and errors as status, headers and bytes: the one place where a ``MatrixError`` becomes HTTP."""

from __future__ import annotations

import math
import re

from ranvier.http.response import JSON, Response, encode
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
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_NO_STORE = (b"cache-control", b"no-store")
_JSON_HEADERS: Headers = [*CORS_HEADERS, _NO_STORE, (b"content-type", JSON.encode())]


def json_headers(length: int) -> Headers:
    """Give the headers of a JSON answer of a number of bytes."""
    return [*_JSON_HEADERS, (b"content-length", b"%d" % length)]


def response_headers(response: Response, length: int | None) -> Headers:
    """Give the headers of a response; ``length`` in bytes, None where it is not known before.

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
    return [header for header in headers if header[0] not in own] + list(own.items())


def render_error(error: MatrixError, *, close: bool = False) -> Response:
    """Make the answer for an error; ``close`` ends the connection because its body was not read.

    Source: client-server API, "Standard error response", "Rate limiting".
    """
    headers: dict[str, str] = {}
    if error.status == 429 and "retry_after_ms" in error.fields:
        headers["Retry-After"] = str(math.ceil(error.fields["retry_after_ms"] / 1000))
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allow
    if close:
        headers["Connection"] = "close"
    return Response(error.status, encode(error.body()), headers)


def render_unexpected(request_id: str) -> Response:
    """Make the answer for a mistake of ours; the log has the traceback under the same request id."""
    error = MatrixError("M_UNKNOWN", 500, f"Internal server error (request {request_id})")
    return render_error(error)
