"""Questions to providers: over HTTPS, in a few threads, bounded in time and size whatever is answered.

urllib3 is imported with the first provider of a configuration: a server without one does without.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from ranvier.spec.errors import MatrixError

TIMEOUT_S: Final = 10.0
MAX_ANSWER: Final = 64 * 1024
AT_ONCE: Final = 16
_PIECE: Final = 16 * 1024


class ProviderFailed(Exception):
    """Say what is wrong with a provider, or with what it answered; nothing secret is in it."""


class ProviderHttp:
    """Ask for JSON. Redirects are not followed: what is sent is for whoever is in the configuration.

    A provider that sends its answer drop by drop keeps its thread for longer than who waits for it.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        import urllib3  # noqa: PLC0415 (only where there is a provider)

        self._timeout_s = timeout_s
        self._failure = urllib3.exceptions.HTTPError
        self._connections = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(total=timeout_s),
            ssl_context=ssl.create_default_context(),
        )
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="providers")
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def close(self) -> None:
        """Ask nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Give the JSON object at a URL. Raises ProviderFailed, and 503 if too many ask at once."""
        return await self._ask("GET", url, None, headers or {})

    async def post(
        self, url: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a form and give the JSON object that is answered; raises as ``get`` does."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._ask("POST", url, urlencode(fields).encode(), {**form, **(headers or {})})

    async def _ask(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        if not self._free.acquire(blocking=False):
            raise MatrixError("M_UNKNOWN", 503, "Too many people log in at the moment; try again")
        future = self._threads.submit(
            self._fetch, method, url, body, {"Accept": "application/json", **headers}
        )
        # The thread is free when it ends, not when nobody waits for it any more.
        future.add_done_callback(lambda _: self._free.release())
        try:
            async with asyncio.timeout(self._timeout_s):
                status, answer = await asyncio.wrap_future(future)
        except TimeoutError:
            raise ProviderFailed("it does not answer") from None
        except self._failure as error:
            raise ProviderFailed(f"it can not be asked ({type(error).__name__})") from None
        return _read(status, answer)

    def _fetch(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Run in a thread."""
        ends = time.monotonic() + self._timeout_s
        response = self._connections.request(
            method,
            url,
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            answer = bytearray()
            while piece := response.read1(_PIECE):
                answer += piece
                if len(answer) > MAX_ANSWER:
                    raise ProviderFailed(f"its answer has more than {MAX_ANSWER} bytes")
                if time.monotonic() > ends:
                    raise ProviderFailed("its answer does not end")
            return response.status, bytes(answer)
        finally:
            response.close()


def _read(status: int, answer: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError:
        value = None
    if status == 200 and isinstance(value, dict):
        return value
    # Source: RFC 6749, 5.2: the error is a word, and says what is wrong with the configuration.
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, str) and error.isascii() and error.isprintable():
        raise ProviderFailed(f"it answers {status} {error[:60]}")
    raise ProviderFailed(f"it answers {status}" if status != 200 else "its answer is no JSON object")
