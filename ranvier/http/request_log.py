"""One line in the log for each request, without its secrets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote_to_bytes

LOGGER_NAME = "ranvier.http.requests"
logger = logging.getLogger(LOGGER_NAME)

# Query parameters that let their holder in, or prove something.
_SECRETS = frozenset({b"access_token", b"token", b"client_secret", b"logintoken", b"code", b"state"})
# Asked every few seconds by machines, and of interest to nobody while the answer is the usual one.
_QUIET_ENDPOINTS = frozenset({"health", "metrics", "console", "console_status"})
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


class RequestLog:
    """Write one line for each answered request.

    ``write_line`` takes a level and a line: by default the way of all log lines, which for so many is dear.
    """

    def __init__(self, write_line: Callable[[int, str], None] = logger.log) -> None:
        self._write_line = write_line

    def level(self, endpoint: str, status: int) -> int:
        """Give the level at which an answer is logged, 0 if nobody wants it. A 5xx is a warning."""
        if status >= 500:
            level = logging.WARNING
        else:
            level = logging.DEBUG if endpoint in _QUIET_ENDPOINTS else logging.INFO
        return level if logger.isEnabledFor(level) else 0

    def write(
        self,
        level: int,
        *,
        method: str,
        raw_path: bytes,
        query_string: bytes,
        status: int,
        size: int,
        duration_ms: float,
        database_ms: float,
        user: str,
        ip: str,
        request_id: str,
    ) -> None:
        """Write the line of one request; ``size`` of the answer's body in bytes."""
        self._write_line(
            level,
            f"{method} {redacted_target(raw_path, query_string)} {status} {size}B {duration_ms:.1f}ms"
            f" db={database_ms:.1f}ms user={user or '-'} ip={ip or '-'} id={request_id}",
        )
