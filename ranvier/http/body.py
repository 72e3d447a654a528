"""Reading a request's body: bounded in size and in time, whatever the client says its length is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from ranvier.spec.errors import MatrixError


class BodySource(Protocol):
    """Give a request's body as it arrives."""

    def whole_body(self) -> bytes | None:
        """Give the body if all of it is here, else None."""

    async def read(self) -> tuple[bytes, bool]:
        """Wait for a piece; give it and whether more follows. Raises ``ClientGoneError``."""


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


async def read_body(source: BodySource, limit: int, timeout_s: float) -> bytes:
    """Give the whole body; ``timeout_s`` bounds it from its first byte to its last.

    Raises ``M_TOO_LARGE`` past the limit, 408 ``M_UNKNOWN`` for a slow client, ``ClientGoneError``.
    """
    whole = source.whole_body()  # small ones came with the head
    if whole is None:
        try:
            async with asyncio.timeout(timeout_s):
                return await _read_all(source, limit)
        except TimeoutError:
            raise BodyRefusedError("M_UNKNOWN", 408, "The request body did not arrive in time") from None
    if len(whole) > limit:
        raise too_large(limit)
    return whole


async def _read_all(source: BodySource, limit: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        piece, more = await source.read()
        body += piece
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)
