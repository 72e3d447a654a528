"""Reading a request's body: bounded in size and in time, whatever the client says its length is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from ranvier.spec.errors import MatrixError

Receive = Callable[[], Awaitable[Any]]


class ClientGoneError(Exception):
    """Say that the client closed the connection before its request was complete."""


class BodyRefusedError(MatrixError):
    """Say that a body is too large or too slow: the connection cannot be used again."""


def too_large(limit: int) -> BodyRefusedError:
    """Say that a body has more than ``limit`` bytes (413 ``M_TOO_LARGE``)."""
    return BodyRefusedError("M_TOO_LARGE", 413, f"The request body is larger than {limit} bytes")


def announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Give the length of the body: 0 when there is none, None when only its end will tell."""
    length: int | None = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            # The parser has checked that it is a number.
            length = int(value) if len(value) < 20 else 1 << 63
    return length


async def read_chunks(receive: Receive, limit: int, timeout_s: float) -> AsyncIterator[bytes]:
    """Give the body piece by piece; ``timeout_s`` bounds the wait for each.

    Raises ``M_TOO_LARGE`` past the limit, 408 ``M_UNKNOWN`` for a slow client, ``ClientGoneError``.
    """
    size = 0
    more = True
    while more:
        chunk, more = await _next_chunk(receive, timeout_s)
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        if chunk:
            yield chunk


async def read_body(receive: Receive, limit: int, timeout_s: float) -> bytes:
    """Give the whole body; ``timeout_s`` bounds it from its first byte to its last.

    Raises ``M_TOO_LARGE`` past the limit, 408 ``M_UNKNOWN`` for a slow client, ``ClientGoneError``.
    """
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body: bytes = message.get("body", b"")
                if len(body) > limit:
                    raise too_large(limit)
                return body
            return await _read_rest(receive, message, limit)
    except TimeoutError:
        raise _too_slow() from None


async def _read_rest(receive: Receive, message: Any, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()


async def _next_chunk(receive: Receive, timeout_s: float) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
    except TimeoutError:
        raise _too_slow() from None
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


def _too_slow() -> BodyRefusedError:
    return BodyRefusedError("M_UNKNOWN", 408, "The request body did not arrive in time")
