"""The ASGI application: every request from its head to its answer, and nothing about what endpoints do."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ranvier.http.authentication import RequestAuthentication
from ranvier.http.body import (
    BodyRefusedError,
    ClientGoneError,
    announced_length,
    read_body,
    read_chunks,
    too_large,
)
from ranvier.http.limits import RateLimiter
from ranvier.http.metrics import Metrics
from ranvier.http.rendering import (
    PREFLIGHT,
    Headers,
    json_headers,
    render_error,
    render_unexpected,
    response_headers,
)
from ranvier.http.request import Request
from ranvier.http.request_log import DatabaseTime, log_request
from ranvier.http.response import Response, encode
from ranvier.http.route import BoundRoute
from ranvier.http.router import Router, bad_path
from ranvier.spec.errors import MatrixError
from ranvier.users.requester import Requester

logger = logging.getLogger(__name__)

CLIENT_GONE = 499  # what nginx logs for a client that closed before its answer; never sent
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"})
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")

Scope = Mapping[str, Any]
Send = Callable[[dict[str, Any]], Any]
Receive = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bound how long a client may take, in seconds: for a whole body, and for one chunk either way."""

    body_s: float = 60.0
    chunk_s: float = 60.0


class Application:
    """Hold what all listeners of a process share, and count the requests in flight.

    ``resources`` maps a resource's name (``client``, ``health``) to its endpoints; each listener serves some.
    ``seen`` is told of each request's holder, address and user agent.
    """

    def __init__(
        self,
        resources: Mapping[str, Sequence[BoundRoute]],
        *,
        authentication: RequestAuthentication,
        limiter: RateLimiter,
        metrics: Metrics,
        database_time: DatabaseTime | None = None,
        clock: Callable[[], float] = time.monotonic,
        timeouts: Timeouts | None = None,
        seen: Callable[[Requester, str, str], None] | None = None,
    ) -> None:
        self.authentication = authentication
        self.limiter = limiter
        self.metrics = metrics
        self.database_time = database_time
        self.clock = clock
        self.timeouts = timeouts or Timeouts()
        self.seen = seen
        self.in_flight = 0
        self._resources = resources
        self._ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch_in_flight(lambda: self.in_flight)

    def endpoint(self, resources: Iterable[str], *, x_forwarded: bool = False) -> Edge:
        """Make the ASGI callable of one listener. Raises ``KeyError`` for an unknown resource.

        With ``x_forwarded`` the client's address and scheme are those that the proxy in front reports.
        """
        routes = [bound for name in dict.fromkeys(resources) for bound in self._resources[name]]
        return Edge(self, Router(routes), x_forwarded=x_forwarded)

    def begin(self) -> str:
        """Count a request in and give it an id for the log."""
        self.in_flight += 1
        self._idle.clear()
        return f"{next(self._ids):x}"

    def end(self) -> None:
        """Count a request out."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight (for draining)."""
        await self._idle.wait()


class Edge:
    """Be the ASGI callable of one listener."""

    def __init__(self, application: Application, router: Router, *, x_forwarded: bool) -> None:
        self.application = application
        self.router = router
        self.x_forwarded = x_forwarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Other kinds of ASGI scopes are not served: listeners do not make them."""
        assert scope["type"] == "http", scope["type"]
        request_id = self.application.begin()
        try:
            await _Exchange(self, scope, receive, send, request_id).run()
        finally:
            self.application.end()


class _Exchange:
    """Carry one request through: find, authenticate, limit, read, run, answer, log."""

    __slots__ = (
        "application",
        "edge",
        "endpoint",
        "gone",
        "headers",
        "id",
        "ip",
        "receive",
        "scope",
        "send",
        "size",
        "status",
        "user",
    )

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.edge = edge
        self.application = edge.application
        self.scope = scope
        self.receive = receive
        self.send = send
        self.id = request_id
        self.headers: Headers = scope["headers"]
        self.ip = ""
        self.user = ""
        self.endpoint = "unrecognized"
        self.status = 0
        self.size = 0
        self.gone = False  # the client closed its connection while a long poll waited

    async def run(self) -> None:
        """Answer, count and log; never raises but for a failing log or metric."""
        started = time.perf_counter()
        database_time = self.application.database_time
        if database_time is not None:
            database_time.begin()
        await self._answer()
        seconds = time.perf_counter() - started
        method = self.scope["method"] if self.scope["method"] in _METHODS else "other"
        self.application.metrics.observe(self.endpoint, method, self.status, seconds)
        log_request(
            method=method,
            raw_path=self.scope["raw_path"],
            query_string=self.scope["query_string"],
            endpoint=self.endpoint,
            status=self.status,
            size=self.size,
            duration_ms=seconds * 1000,
            database_ms=database_time.spent_ms() if database_time is not None else 0.0,
            user=self.user,
            ip=self.ip,
            request_id=self.id,
        )

    async def _answer(self) -> None:
        try:
            await self._reply(await self._result())
        except ClientGoneError:
            self.status = CLIENT_GONE
        except asyncio.CancelledError:
            # Either the client left its long poll, or the server stops and has waited long enough. This is
            # the outermost frame of the request's task, so the cancellation ends here.
            if self.gone:
                self.status = CLIENT_GONE
            else:
                await self._reply_error(MatrixError("M_UNKNOWN", 503, "The server is stopping"))
        except MatrixError as error:
            await self._reply_error(error)
        except Exception:
            logger.exception("Request %s to %s failed", self.id, self.endpoint)
            await self._reply_unless_begun(render_unexpected(self.id))

    async def _reply_error(self, error: MatrixError) -> None:
        await self._reply_unless_begun(render_error(error, close=isinstance(error, BodyRefusedError)))

    async def _reply_unless_begun(self, response: Response) -> None:
        # An answer that broke off is left incomplete, and the server below closes the connection.
        if not self.status:
            await self._reply(response)

    async def _result(self) -> Any:
        """Do all that comes before the answer, and run the handler."""
        scope = self.scope
        scheme = self._read_peer()
        method: str = scope["method"]
        if method == "OPTIONS":
            # Source: client-server API, "Web Browser Clients": no logic of the endpoint for OPTIONS.
            self.endpoint = "preflight"
            return PREFLIGHT
        try:
            path = scope["raw_path"].decode("ascii")
        except UnicodeDecodeError:
            raise bad_path() from None
        bound, params = self.edge.router.find(method, path)
        route = bound.route
        self.endpoint = route.name
        length = announced_length(self.headers)
        if length is not None and length > route.max_body:
            raise too_large(route.max_body)
        request = Request(
            method,
            path,
            route,
            params=params,
            query_string=scope["query_string"],
            headers=self.headers,
            ip=self.ip,
            scheme=scheme,
            request_id=self.id,
        )
        return await self._run_handler(bound, request, has_body=length != 0)

    async def _run_handler(self, bound: BoundRoute, request: Request, *, has_body: bool) -> Any:
        application, route = self.application, bound.route
        requester = await application.authentication.identify(route.auth, self.headers, request.query_string)
        if requester is not None:
            request.requester_or_none = requester
            self.user = requester.user_id
            if application.seen is not None:
                application.seen(requester, self.ip, request.user_agent)
        if route.limit is not None:
            application.limiter.check_request(request, application.clock())
        if route.stream:
            timeout_s = application.timeouts.chunk_s
            request.set_reader(lambda: read_chunks(self.receive, route.max_body, timeout_s))
        elif has_body:
            request.body = await read_body(self.receive, route.max_body, application.timeouts.body_s)
        if route.long_poll:
            return await self._run_watched(bound, request)
        return await bound.run(request)

    async def _run_watched(self, bound: BoundRoute, request: Request) -> Any:
        """Run a handler that waits, and cancel it when the client goes away."""
        handler = asyncio.current_task()
        assert handler is not None
        watcher = asyncio.create_task(self._watch(handler))
        try:
            return await bound.run(request)
        finally:
            watcher.cancel()

    async def _watch(self, handler: asyncio.Task[Any]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        handler.cancel()

    def _read_peer(self) -> str:
        """Find the client's address, and give the scheme that it used."""
        client = self.scope.get("client")
        self.ip = client[0] if client else ""
        scheme: str = self.scope.get("scheme", "http")
        if self.edge.x_forwarded:
            # The first hop is the client; each proxy adds the one that it heard from.
            for name, value in reversed(self.headers):
                first = value.split(b",", 1)[0].strip().decode("latin-1")
                if name == b"x-forwarded-for" and _ADDRESS.fullmatch(first):
                    self.ip = first
                elif name == b"x-forwarded-proto" and first in ("http", "https"):
                    scheme = first
        return scheme

    async def _reply(self, result: Any) -> None:
        if not isinstance(result, Response):
            body = encode(result)
            await self._send(200, json_headers(len(body)), body)
        elif result.is_stream:
            await self._send_stream(result)
        else:
            body = encode(result.body)
            await self._send(result.status, response_headers(result, len(body)), body)

    async def _send(self, status: int, headers: Headers, body: bytes) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        self.status = status
        self.size = len(body)
        await self.send({"type": "http.response.body", "body": body})

    async def _send_stream(self, response: Response) -> None:
        chunks = response.body
        try:
            headers = response_headers(response, None)
            await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
            self.status = response.status
            async for chunk in chunks:
                self.size += len(chunk)
                await self._send_chunk(chunk)
            await self.send({"type": "http.response.body", "body": b""})
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()

    async def _send_chunk(self, chunk: bytes) -> None:
        """Send a piece of a body; a client that takes nothing for too long counts as gone."""
        try:
            async with asyncio.timeout(self.application.timeouts.chunk_s):
                await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            raise ClientGoneError from None
