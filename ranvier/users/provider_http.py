"""Questions to a provider: over HTTPS, and bounded in number, time and size whatever is answered."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

import httptools
import orjson

from ranvier.spec.errors import MatrixError

TIMEOUT_S: Final = 10.0
MAX_ANSWER: Final = 64 * 1024
AT_ONCE: Final = 16
_PIECE: Final = 16 * 1024


class ProviderFailed(Exception):
    """Say what is wrong with a provider, or with what it answered; nothing secret is in it."""


class ProofRefused(ProviderFailed):
    """Say that it is wrong what somebody brought from a provider, which they may try again and again."""


class ProviderHttp:
    """Ask one provider for JSON. Redirects are not followed: what is sent is for whoever is configured."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context()
        self._free = asyncio.Semaphore(AT_ONCE)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Give the JSON object at a URL. Raises ProviderFailed, and 503 if too many ask at once."""
        return await self._ask("GET", url, b"", headers or {})

    async def post(
        self, url: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a form and give the JSON object that is answered.

        Raises as ``get`` does, and ProofRefused if the provider takes the fields for wrong.
        """
        body = urlencode(fields).encode()
        form = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
        return await self._ask("POST", url, body, {**form, **(headers or {})})

    async def _ask(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        if self._free.locked():
            raise MatrixError("M_UNKNOWN", 503, "Too many people log in at the moment; try again")
        async with self._free:
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, answer = await self._fetch(method, urlsplit(url), body, headers)
            except TimeoutError:
                raise ProviderFailed("it does not answer") from None
            except (OSError, UnicodeError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                raise ProviderFailed(f"it can not be asked ({type(error).__name__})") from None
        return _read(method, status, answer)

    async def _fetch(
        self, method: str, url: SplitResult, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        tls = self._tls if url.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            url.hostname, url.port or (80 if tls is None else 443), ssl=tls
        )
        try:
            writer.write(_head(method, url, headers) + body)
            return await _answer(reader)
        finally:
            writer.transport.abort()


class _Message:
    """What httptools reads of an answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.is_whole = False

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        # "A client MUST be able to parse one or more 1xx responses received prior to a final response, even
        # if the client does not expect one" (RFC 9110, 15.2).
        self.is_whole = self.parser.get_status_code() >= 200


def _head(method: str, url: SplitResult, headers: Mapping[str, str]) -> bytes:
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    always = {
        "Host": url.netloc,
        "User-Agent": "Ranvier",
        "Accept": "application/json",
        "Connection": "close",
    }
    lines = [f"{name}: {value}" for name, value in {**always, **headers}.items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("ascii")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read to the end of an answer, or of the connection."""
    message, size = _Message(), 0
    while not message.is_whole and (piece := await reader.read(_PIECE)):
        size += len(piece)
        if size > MAX_ANSWER:
            raise ProviderFailed(f"its answer has more than {MAX_ANSWER} bytes")
        message.parser.feed_data(piece)
    return message.parser.get_status_code(), bytes(message.body)


def _read(method: str, status: int, answer: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError:
        value = None
    if status == 200 and isinstance(value, dict):
        return value
    # Source: RFC 6749, 5.2: the error is a word, and says what is wrong with the form, or the configuration.
    error = value.get("error") if isinstance(value, dict) else None
    told = f" {error[:60]}" if isinstance(error, str) and error.isascii() and error.isprintable() else ""
    if method == "POST" and status == 400:
        raise ProofRefused(f"it answers 400{told}")
    if status != 200:
        raise ProviderFailed(f"it answers {status}{told}" if status else "it answers nothing")
    raise ProviderFailed("its answer is no JSON object")
