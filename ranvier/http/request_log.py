"""One line in the log for each request, without its secrets."""

from __future__ import annotations

import logging
from typing import Protocol
from urllib.parse import unquote_to_bytes

logger = logging.getLogger("ranvier.http.requests")

# Query parameters that let their holder in, or prove something.
_SECRETS = frozenset({b"access_token", b"token", b"client_secret", b"logintoken", b"code", b"state"})
# Asked every few seconds by machines, and of interest to nobody while the answer is the usual one.
_QUIET_ENDPOINTS = frozenset({"health", "metrics"})
_LONGEST_TARGET = 1000


class DatabaseTime(Protocol):
    """Add up how long a request waited for the database, in the context of the task that answers it."""

    def begin(self) -> None:
        """Start at zero for the current task."""

    def spent_ms(self) -> float:
        """Give the milliseconds since ``begin``."""


def redacted_target(raw_path: bytes, query_string: bytes) -> str:
    """Give path and query for the log: printable, bounded, and with secrets taken out."""
    target = raw_path
    if query_string:
        target += b"?" + b"&".join(_redact(field) for field in query_string.split(b"&"))
    return target[:_LONGEST_TARGET].decode("ascii", "backslashreplace")


def _redact(field: bytes) -> bytes:
    name, equals, _ = field.partition(b"=")
    if equals and unquote_to_bytes(name.replace(b"+", b" ")).lower() in _SECRETS:
        return name + b"=<redacted>"
    return field


def log_request(
    *,
    method: str,
    raw_path: bytes,
    query_string: bytes,
    endpoint: str,
    status: int,
    size: int,
    duration_ms: float,
    database_ms: float,
    user: str,
    ip: str,
    request_id: str,
) -> None:
    """Write the line of one answered request; ``size`` in bytes. A 5xx is a warning."""
    if status >= 500:
        level = logging.WARNING
    else:
        level = logging.DEBUG if endpoint in _QUIET_ENDPOINTS else logging.INFO
    if not logger.isEnabledFor(level):
        return
    logger.log(
        level,
        "%s %s %d %dB %.1fms db=%.1fms user=%s ip=%s id=%s",
        method,
        redacted_target(raw_path, query_string),
        status,
        size,
        duration_ms,
        database_ms,
        user or "-",
        ip or "-",
        request_id,
    )
