"""One request from its head to its answer: at once where its endpoint can, else in a task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ranvier.http.body import BodyRefusedError, ClientGoneError, announced_length, read_body, too_large
from ranvier.http.exchange import Exchange
from ranvier.http.known import SEEN_EVERY_S, Known, get_to_know
from ranvier.http.rendering import PREFLIGHT, json_head, render_error, render_head, render_unexpected
from ranvier.http.reported import reported, reported_id
from ranvier.http.request import Request
from ranvier.http.response import Response, encode
from ranvier.http.route import ONCE_ID, BoundRoute, Parked
from ranvier.http.router import bad_path
from ranvier.log.clock import note_asked
from ranvier.spec.errors import MatrixError
from ranvier.users.requester import Requester

if TYPE_CHECKING:
    from ranvier.http.app import Edge, Neighbours

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[Any]]

CLIENT_GONE = 499  # what nginx logs for a client that closed before its answer; never sent
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"})


class _MovedError(Exception):
    """Say that another worker answers: the connection is there now."""


class Call:
    """Carry one request through: find, authenticate, limit, read, run, answer, log."""

    __slots__ = (
        "_found",
        "_number",
        "_stays",
        "application",
        "edge",
        "endpoint",
        "exchange",
        "ip",
        "moved",
        "parked",
        "size",
        "started",
        "status",
        "user",
    )

    def __init__(self, edge: Edge, exchange: Exchange, number: int) -> None:
        self.edge = edge
        self.application = edge.application
        self.exchange = exchange
        self._number = number
        self._found: tuple[BoundRoute, Request] | None = None
        self._stays = False  # whether it is known that no other worker is better asked
        self.ip = exchange.ip
        self.user = ""
        self.endpoint = "unrecognized"
        self.status = 0
        self.size = 0
        self.started = time.perf_counter()
        self.moved = False
        self.parked: Parked | None = None

    @property
    def id(self) -> str:
        """Name the request in the log."""
        return f"{self._number:x}"

    # -- without a task ------------------------------------------------------------------------------

    def start(self) -> None:
        """Answer now, or park the request, where its endpoint can; else begin a task."""
        outcome: bytes | Parked | None = None
        try:
            if self._is_given_away():
                return
            outcome = self._try_at_once()
        except MatrixError:
            pass  # the task comes upon it, too, and answers with it
        except Exception:
            logger.exception("Request %s could not be answered at once", self.id)
        if outcome is None:
            if not self._try_elsewhere():
                self._begin_task(self._result)
        elif isinstance(outcome, bytes):
            self._finish(outcome)
        else:
            self.parked = outcome
            self.exchange.on_gone = self._leave
            outcome.wait(self._resume)

    def _is_given_away(self) -> bool:
        """Have another worker answer somebody who polls, if this one has too much to do."""
        neighbours, exchange = self.application.neighbours, self.exchange
        if neighbours is None or not neighbours.is_crowded():
            return False
        known: Known | None = exchange.head.known
        bound = known.bound if known else self.edge.router.find_exact(exchange.method, exchange.raw_path)
        if bound is None or not bound.route.long_poll or not exchange.is_whole:
            return False
        name = neighbours.relief()
        return name is not None and exchange.move(name) and self._let_go()

    def _let_go(self) -> bool:
        """Be done with a request that another worker answers."""
        self.moved = True
        self._end(0.0)
        return True

    def _try_at_once(self) -> bytes | Parked | None:
        exchange, application = self.exchange, self.application
        known: Known | None = exchange.head.known
        since = exchange.since
        if known is None or since is None:
            found = get_to_know(self.edge, exchange)
            if found is None:
                return None
            known, since = found
        neighbours = application.neighbours
        if exchange.write_paused or (neighbours is not None and not neighbours.is_current()):
            return None
        route = known.bound.route
        requester = application.authentication.known(route.auth, known.token_key)
        if requester is None:
            return None
        outcome = known.repeated.begin(requester, since)
        if outcome is not None:
            if known.ip:
                self.ip = known.ip
            self.endpoint = route.name
            self.user = requester.user_id
            exchange.head.known = known
            if application.seen is not None and self.started - known.seen_s >= SEEN_EVERY_S:
                known.seen_s = self.started
                application.seen(requester, self.ip, known.agent)
        return outcome

    def _resume(self) -> bool:
        """Answer a request that was parked; False if that takes a task."""
        body = None
        try:
            body = self._unpark().answer()
        except Exception:
            logger.exception("Request %s could not be answered at once", self.id)
        if body is None or self.exchange.write_paused:
            self._begin_task(self._result)
            return False
        self._finish(body)
        return True

    def _unpark(self) -> Parked:
        # Who waits knows this call, too: that circle would be left to the garbage collector.
        parked, self.parked = self.parked, None
        self.exchange.on_gone = None
        assert parked is not None
        return parked

    def _leave(self) -> None:
        """Give up a parked request: its client is gone, or the server will not wait any longer."""
        self._unpark().leave()
        self.status = CLIENT_GONE
        self._end(0.0)

    def _finish(self, body: bytes) -> None:
        self.status = 200
        self.size = len(body)
        self.exchange.send_whole(json_head(self.size), body, self.application.latest_answer)
        self._end(0.0)

    # -- by another worker, without a task -------------------------------------------------------------

    def _try_elsewhere(self) -> bool:
        """Pass the request on, if another worker is better asked and nothing is to be waited for before.

        False if a task has to find out. Until all is known to be well nothing is counted.
        """
        neighbours = self.application.neighbours
        if neighbours is None or self.exchange.method in ("GET", "HEAD", "OPTIONS"):
            return False
        if neighbours.is_only_writer():
            self._stays = True
            return False
        try:
            return self._pass_on(neighbours)
        except MatrixError:
            pass  # the task comes upon it, too, and answers with it
        except Exception:
            logger.exception("Request %s could not be passed on", self.id)
        return False

    def _pass_on(self, neighbours: Neighbours) -> bool:
        exchange, application = self.exchange, self.application
        body = exchange.whole_body()
        if body is None:
            return False
        self._found = bound, request = self._find()
        route = bound.route
        if self._move(neighbours, request):
            return self._let_go()
        target = neighbours.target(request)
        if current := neighbours.is_current():
            self._stays = target is None  # else it may yet show that another one is better asked
        if target is None or route.long_poll or len(body) > route.max_body:
            return False
        authentication = application.authentication
        key = authentication.key(exchange.headers)
        requester = authentication.known(route.auth, key) if key is not None else None
        if requester is None:
            return False
        request.requester_or_none = requester
        application.limiter.check_request(request, application.clock())
        self.user = requester.user_id
        request.body = body
        run_here = partial(bound.run if current else partial(self._run_once_current, bound), request)
        forget = neighbours.pass_on(target, request, partial(self._hear, run_here))
        if application.seen is not None:
            application.seen(requester, self.ip, request.user_agent)
        if forget is None:
            self._begin_task(run_here)
        else:
            exchange.on_abandoned = partial(self._abandon, run_here, forget)
        return True

    async def _run_once_current(self, bound: BoundRoute, request: Request) -> Any:
        """Run the handler after all, for somebody of whom all was not known yet when it was passed on."""
        await self._identify(request)
        return await bound.run(request)

    def _move(self, neighbours: Neighbours, request: Request) -> bool:
        """Have the worker to which the connection belongs answer; False if it stays."""
        exchange = self.exchange
        return exchange.may_move and (name := neighbours.home(request)) is not None and exchange.move(name)

    def _hear(self, run_here: Work, answer: bytes | Response | BaseException | None) -> None:
        """Answer with what another worker has answered; anything unusual takes a task."""
        self.exchange.on_abandoned = None
        if isinstance(answer, bytes) and not self.exchange.write_paused:
            self._finish(answer)
        elif answer is None:
            self._begin_task(run_here)
        else:
            self._begin_task(partial(_outcome, answer))

    def _abandon(self, run_here: Work, forget: Callable[[], None]) -> None:
        """Wait no longer for another worker: the server stops and has waited long enough."""
        forget()
        self._hear(run_here, asyncio.CancelledError())

    # -- in a task -----------------------------------------------------------------------------------

    def _begin_task(self, work: Work) -> None:
        self.exchange.task = asyncio.get_running_loop().create_task(self._run(work))

    async def _run(self, work: Work) -> None:
        note_asked(time.perf_counter() - self.started)
        database_time = self.application.database_time
        if database_time is not None:
            database_time.begin()
        try:
            await self._answer(work)
        finally:
            self._end(database_time.spent_ms() if database_time is not None else 0.0)

    def _end(self, database_ms: float) -> None:
        """Count and log the request, unless another worker does."""
        application, exchange = self.application, self.exchange
        if self.moved:
            exchange.end()
            application.end_moved()
            return
        seconds = time.perf_counter() - self.started
        method = exchange.method if exchange.method in _METHODS else "other"
        try:
            application.metrics.observe(self.endpoint, method, self.status, seconds)
            level = application.request_log.level(self.endpoint, self.status)
            if level:
                application.request_log.write(
                    level,
                    method=method,
                    raw_path=exchange.raw_path,
                    query_string=exchange.query_string,
                    status=self.status,
                    size=self.size,
                    duration_ms=seconds * 1000,
                    database_ms=database_ms,
                    user=self.user,
                    ip=self.ip,
                    request_id=self.id,
                )
        except Exception:
            logger.exception("Request %s could not be counted or logged", self.id)
        finally:
            exchange.end()
            application.end()

    async def _answer(self, work: Work) -> None:
        try:
            await self._reply(await work())
        except _MovedError:
            self.moved = True
        except ClientGoneError:
            self.status = CLIENT_GONE
        except asyncio.CancelledError:
            # Either the client left its long poll, or the server stops and has waited long enough. This is
            # the outermost frame of the request's task, so the cancellation ends here.
            if self.exchange.gone:
                self.status = CLIENT_GONE
            else:
                await self._reply_error(MatrixError("M_UNKNOWN", 503, "The server is stopping"))
        except MatrixError as error:
            await self._reply_error(error)
        except Exception:
            logger.exception("Request %s to %s failed", self.id, self.endpoint)
            await self._reply_unless_begun(render_unexpected(self.id))

    async def _reply_error(self, error: MatrixError) -> None:
        if isinstance(error, BodyRefusedError):
            self.exchange.keep_alive = False  # what is left of the body would be taken for a request
        await self._reply_unless_begun(render_error(error))

    async def _reply_unless_begun(self, response: Response) -> None:
        # An answer that broke off is left incomplete, and the connection is closed.
        if not self.status:
            try:
                await self._reply(response)
            except ClientGoneError:
                self.status = CLIENT_GONE

    async def _result(self) -> Any:
        """Do all that comes before the answer, and run the handler."""
        if self.exchange.method == "OPTIONS":
            # Source: client-server API, "Web Browser Clients": no logic of the endpoint for OPTIONS.
            if self.edge.x_forwarded:
                self._read_forwarded()
            self.endpoint = "preflight"
            return PREFLIGHT
        bound, request = self._found or self._find()
        return await self._run_handler(bound, request)

    def _find(self) -> tuple[BoundRoute, Request]:
        """Find the endpoint. Raises MatrixError where there is none, or the body is larger than it takes."""
        exchange = self.exchange
        scheme = self._read_forwarded() if self.edge.x_forwarded else exchange.scheme
        try:
            path = exchange.raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise bad_path() from None
        bound, params = self.edge.router.find(exchange.method, path)
        route = bound.route
        self.endpoint = route.name
        length = announced_length(exchange.headers)
        if length is not None and length > route.max_body:
            raise too_large(route.max_body)
        if route.once and self.edge.x_forwarded and (name := reported_id(exchange.headers)) is not None:
            params[ONCE_ID] = name
        request = Request(
            exchange.method,
            path,
            route,
            params=params,
            query_string=exchange.query_string,
            headers=exchange.headers,
            ip=self.ip,
            scheme=scheme,
            request_id=self.id,
            began_s=self.started,
        )
        return bound, request

    async def _run_handler(self, bound: BoundRoute, request: Request) -> Any:
        application, route, exchange = self.application, bound.route, self.exchange
        neighbours = application.neighbours
        if route.long_poll:
            exchange.stay()
        # Before anything is counted: the limits are counted where the request is answered.
        if neighbours is not None and not self._stays and self._move(neighbours, request):
            raise _MovedError
        requester = await self._identify(request)
        if requester is not None:
            self.user = requester.user_id
            if application.seen is not None:
                application.seen(requester, self.ip, request.user_agent)
        if route.limit is not None:
            application.limiter.check_request(request, application.clock())
        if announced_length(exchange.headers) != 0:
            request.body = await read_body(exchange, route.max_body, application.timeouts.body_s)
        if route.long_poll:
            if exchange.gone:
                raise ClientGoneError
            exchange.cancel_when_gone = True
        if neighbours is not None and not self._stays and (name := neighbours.target(request)) is not None:
            answer = await neighbours.ask(name, request)
            if answer is not None:
                return answer
        return await bound.run(request)

    async def _identify(self, request: Request) -> Requester | None:
        """Find out who asks, once this worker has followed the log as far as others were when they asked."""
        application, route = self.application, request.route
        neighbours = application.neighbours
        if neighbours is not None and route.follows and (behind := neighbours.catch_up()) is not None:
            await behind
        requester = request.requester_or_none = await application.authentication.identify(
            route.auth, self.exchange.headers, request.query_string
        )
        return requester

    def _read_forwarded(self) -> str:
        """Find the client's address as the proxy in front reports it, and give the scheme that it used."""
        address, scheme = reported(self.exchange.headers)
        self.ip = address or self.ip
        return scheme or self.exchange.scheme

    async def _reply(self, result: Any) -> None:
        # From here on there is an answer, which is not broken off half way.
        self.exchange.cancel_when_gone = False
        if not isinstance(result, Response):
            body = encode(result)
            await self._send(200, json_head(len(body)), body)
        elif result.is_stream:
            await self._send_stream(result)
        else:
            body = encode(result.body)
            await self._send(result.status, render_head(result, len(body)), body)

    async def _send(self, status: int, head: bytes, body: bytes) -> None:
        self.status = status
        self.size = len(body)
        if self.exchange.write_paused:
            await self.exchange.drain(self.application.timeouts.chunk_s)
        self.exchange.send_now(head, body)

    async def _send_stream(self, response: Response) -> None:
        chunks, exchange = response.body, self.exchange
        try:
            head = render_head(response, None)
            sized = any(name.lower() == "content-length" for name in response.headers)
            self.status = response.status
            exchange.start(head, sized=sized)
            async for chunk in chunks:
                if exchange.gone:
                    raise ClientGoneError
                self.size += len(chunk)
                if exchange.write_paused:
                    await exchange.drain(self.application.timeouts.chunk_s)
                exchange.send_piece(chunk)
            exchange.finish()
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()


async def _outcome(answer: bytes | Response | BaseException) -> bytes | Response:
    """Give or raise what another worker's answer comes to."""
    if isinstance(answer, BaseException):
        raise answer
    return answer
