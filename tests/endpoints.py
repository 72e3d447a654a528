"""A few endpoints on a real database and a real socket, for tests of one area without the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import Route, bind
from ranvier.log.bus import Bus
from ranvier.spec.filters import NO_FILTER, Filter
from ranvier.sync.context import RoomSection, SyncContext
from ranvier.users.requester import Requester
from ranvier.wire.tokens import Token
from tests.core import Core


class ManualClock:
    """A clock that stands still until a test sets it forward."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.seconds * 1000) + 1_700_000_000_000

    def monotonic(self) -> float:
        """Seconds since some fixed point."""
        return self.seconds


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something meanwhile."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Tokens:
    """Take a user id for an access token."""

    async def authenticate(self, token: str) -> Requester:
        return Requester(token, "PHONE")


@dataclass(frozen=True)
class Endpoints:
    """Endpoints that are being served."""

    url: str
    session: aiohttp.ClientSession

    async def ask(self, method: str, user: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request as a user (``path`` after ``/_matrix/client/v3``) and give status and answer."""
        data = None if body is None else orjson.dumps(body)
        async with self.session.request(
            method,
            f"{self.url}/_matrix/client/v3{path}",
            data=data,
            headers={"Authorization": f"Bearer {user}"},
        ) as response:
            return response.status, orjson.loads(await response.read())


@asynccontextmanager
async def serving(
    routes: Sequence[Route], parts: Mapping[str, object], *, limits: Sequence[str] = ()
) -> AsyncIterator[Endpoints]:
    """Serve some routes on a free port of the loopback."""
    metrics = Metrics()
    application = Application(
        {"client": bind(routes, parts)},
        authentication=RequestAuthentication(_Tokens()),
        limiter=RateLimiter({name: Rate(1000, 1000) for name in limits}),
        metrics=metrics,
    )
    listener = Listener(
        ListenerSettings((TcpAddress("127.0.0.1", 0),)), application.endpoint(["client"], x_forwarded=False)
    )
    await listener.start()
    address = listener.addresses[0]
    assert isinstance(address, TcpAddress)
    try:
        async with aiohttp.ClientSession() as session:
            yield Endpoints(f"http://127.0.0.1:{address.port}", session)
    finally:
        await listener.stop(grace_s=2)


async def nobody_ignored(user_id: str) -> frozenset[str]:
    """Give the users whom a user ignores: none."""
    return frozenset()


async def sync_context(
    core: Core, bus: Bus, user_id: str, since: Token | None = None, filter: Filter = NO_FILTER
) -> SyncContext:
    """Make what a section is given when a user syncs now."""
    memberships = (await core.memberships.of(user_id)).values()
    joined = [m for m in memberships if m.membership == "join"]
    new = [m.room_id for m in joined if since is None or (m.since or m.pos) > since.pos]
    return SyncContext(
        user_id=user_id,
        device_id="PHONE",
        filter=filter,
        since=since,
        upto=Token(core.tail.pos, *bus.ephemeral_now()),
        joined=[m.room_id for m in joined],
        newly_joined=frozenset(new),
        left=frozenset(m.room_id for m in memberships if m.membership != "join"),
        in_tail=since is not None and since.pos >= core.tail.start,
    )


async def room_events(section: RoomSection, context: SyncContext, room_id: str) -> list[Any]:
    """Give what a section has for one room, as a client reads it."""
    if context.since is None or room_id in context.newly_joined:
        parts = await section.initial(context, [r for r in context.joined if r == room_id])
    else:
        parts = await section.since(context)
    return [orjson.loads(event) for event in parts.get(room_id, ())]
