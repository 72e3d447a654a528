"""The application: every request from its head to its answer, and nothing about what endpoints do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ranvier.http.authentication import RequestAuthentication
from ranvier.http.call import Call
from ranvier.http.exchange import Exchange, Latest
from ranvier.http.limits import RateLimiter
from ranvier.http.metrics import Metrics
from ranvier.http.request import Request
from ranvier.http.request_log import DatabaseTime, RequestLog
from ranvier.http.response import Response
from ranvier.http.route import BoundRoute
from ranvier.http.router import Router
from ranvier.users.requester import Requester

Hear = Callable[[bytes | Response | Exception | None], None]
"""Is told what another worker answered, why it did not, or with None that it is to be done here."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bound how long a client may take, in seconds, to send a whole body and to take a piece of an answer."""

    body_s: float = 60.0
    chunk_s: float = 60.0


class Neighbours(Protocol):
    """The other workers of a server that has several; see ``http.forwarding``."""

    def is_current(self) -> bool:
        """Tell whether there surely is nothing to catch up with."""

    def catch_up(self) -> Awaitable[None] | None:
        """Give what is to be awaited before anything is read for a request."""

    def is_only_writer(self) -> bool:
        """Tell whether this worker is the one to be asked for whatever is written."""

    def target(self, request: Request) -> str | None:
        """Give the worker that is to answer, though the connection stays here; None for this one."""

    def is_crowded(self) -> bool:
        """Tell whether this worker has too much to do."""

    def relief(self) -> str | None:
        """Give the worker that is to go on with somebody who polls here; None for this one."""

    def home(self, request: Request) -> str | None:
        """Give the worker to which the connection is to go with this request; None if it may stay."""

    async def ask(self, name: str, request: Request) -> bytes | Response | None:
        """Have another worker answer; None if it is to be done here after all."""

    def pass_on(self, name: str, request: Request, hear: Hear) -> Callable[[], None] | None:
        """Do the same without a task, and give what ends the wait; None if it is to be done here."""


class Application:
    """Hold what all listeners of a process share, and count the requests in flight.

    ``resources`` maps a resource's name (``client``, ``health``) to its endpoints; each listener serves some.
    ``seen`` is told of each request's holder, address and user agent. ``neighbours`` is set once there are
    any.
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
        request_log: RequestLog | None = None,
    ) -> None:
        self.authentication = authentication
        self.limiter = limiter
        self.metrics = metrics
        self.database_time = database_time
        self.clock = clock
        self.timeouts = timeouts or Timeouts()
        self.seen = seen
        self.request_log = request_log or RequestLog()
        self.neighbours: Neighbours | None = None
        self.latest_answer = Latest()
        self.in_flight = 0
        self.answered = 0
        self.answered_for_others = 0
        """Of those answered, how many were passed on by another worker, which counts them too."""
        self._resources = resources
        self._ids = itertools.count(1)
        metrics.watch_in_flight(lambda: self.in_flight)

    def endpoint(self, resources: Iterable[str], *, x_forwarded: bool = False) -> Edge:
        """Make what one listener serves. Raises ``KeyError`` for an unknown resource.

        With ``x_forwarded`` the client's address and scheme are those that the proxy in front reports, and so
        is what it calls the request.
        """
        routes = [bound for name in dict.fromkeys(resources) for bound in self._resources[name]]
        return Edge(self, Router(routes), x_forwarded=x_forwarded)

    def begin(self) -> int:
        """Count a request in and give it a number."""
        self.in_flight += 1
        return next(self._ids)

    def end(self) -> None:
        """Count a request out."""
        self.answered += 1
        self.end_moved()

    def end_moved(self) -> None:
        """Count a request out that another worker answers."""
        self.in_flight -= 1


class Edge:
    """Answer the requests of one listener."""

    def __init__(self, application: Application, router: Router, *, x_forwarded: bool) -> None:
        self.application = application
        self.router = router
        self.x_forwarded = x_forwarded

    def answer(self, exchange: Exchange) -> None:
        """Answer one request, at once or in a task, count it and log it; never raises."""
        Call(self, exchange, self.application.begin()).start()
