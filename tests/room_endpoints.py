"""A core with the endpoints that read rooms and send into them, on a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yarl

from ranvier.client_api import context, messages, relations, room_events, room_state, send
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import bind
from ranvier.log.clock import SystemClock
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.actor import Actor
from ranvier.rooms.draft import Txn
from ranvier.rooms.erased_users import ErasedUsers
from ranvier.rooms.redact import Redactor
from ranvier.rooms.relations import Relations
from ranvier.rooms.room import Room
from ranvier.rooms.send import Sending
from ranvier.rooms.timeline import Timeline
from ranvier.rooms.transactions import Transactions
from ranvier.rooms.visibility import Visibility
from ranvier.spec.errors import MatrixError
from ranvier.storage.erasure import ErasureStore
from ranvier.storage.relations import RelationStore
from ranvier.storage.transactions import TransactionStore
from ranvier.sync.render import PreviousStates, Renderer
from ranvier.sync.state_at import StateAt
from ranvier.users.requester import Requester
from ranvier.wire.log_rows import EventRow
from tests.core import SERVER_NAME, Core, running_core

ALICE, BOB, CAROL = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol"))
ROUTES = [
    *context.ROUTES,
    *messages.ROUTES,
    *relations.ROUTES,
    *room_events.ROUTES,
    *room_state.ROUTES,
    *send.ROUTES,
]


class Holders:
    """Take ``name`` or ``name/DEVICE`` for an access token, so that tests need no accounts."""

    async def authenticate(self, token: str) -> Requester:
        name, _, device = token.partition("/")
        return Requester(
            f"@{name}:{SERVER_NAME}",
            device or "PHONE",
            is_guest=name.startswith("guest"),
            is_admin=name == "admin",
            suspended=device == "SUSPENDED",
            shadow_banned=name == "shadow",
            appservice_id="bridge" if name == "bridge" else None,
        )


class Ignoring(dict[str, frozenset[str]]):
    """Whom users ignore, by user id."""

    async def of(self, user_id: str) -> frozenset[str]:
        return self.get(user_id, frozenset())


@dataclass(frozen=True)
class Answer:
    """What a request gave."""

    status: int
    json: Any

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.json.get("errcode", "")


@dataclass
class RoomEndpoints:
    """What the tests reach for."""

    core: Core
    url: str
    session: aiohttp.ClientSession
    renderer: Renderer
    parts: Mapping[str, object]
    ignoring: Ignoring
    forgotten: set[tuple[str, str]] = field(default_factory=set)
    bad_aliases: set[str] = field(default_factory=set)

    async def ask(
        self, method: str, path: str, user: str, body: Any = None, request_id: str = "", **query: Any
    ) -> Answer:
        """Make a request; ``path`` is after ``/_matrix/client/v3/rooms/`` unless it begins with a slash."""
        full = path if path.startswith("/") else "/_matrix/client/v3/rooms/" + path
        url = yarl.URL(self.url + full, encoded=True).update_query(query)
        headers = {"Authorization": f"Bearer {user}"}
        if request_id:
            headers["X-Request-Id"] = request_id
        async with self.session.request(method, url, json=body, headers=headers) as answer:
            return Answer(answer.status, await answer.json(content_type=None))

    async def get(self, path: str, user: str = "alice", **query: Any) -> Any:
        """Read something that must be there."""
        answer = await self.ask("GET", path, user, **query)
        assert answer.status == 200, answer
        return answer.json

    async def refused(self, path: str, user: str = "alice", **query: Any) -> tuple[int, str]:
        """Read something that must be refused, and give status and errcode."""
        return (await self.ask("GET", path, user, **query)).error

    async def put(self, path: str, user: str = "alice", body: Any = None, **query: Any) -> Answer:
        """Write something."""
        return await self.ask("PUT", path, user, {} if body is None else body, **query)

    async def say(self, room_id: str, text: str, user: str = "alice", **content: Any) -> str:
        """Send a message and give its id."""
        sender = f"@{user}:{SERVER_NAME}"
        body = {"msgtype": "m.text", "body": text, **content}
        return await self.event(room_id, sender, "m.room.message", body)

    async def event(
        self, room_id: str, sender: str, type: str, content: dict[str, Any], state_key: str | None = None
    ) -> str:
        """Write an event past the API and give its id."""
        row: EventRow = await self.core.writer.write(
            room_id,
            lambda draft: draft.add(sender=sender, type=type, content=content, state_key=state_key),
        )
        return row.event_id

    async def member(self, room_id: str, user: str, membership: str, by: str | None = None) -> str:
        """Change a membership."""
        user_id = f"@{user}:{SERVER_NAME}"
        sender = f"@{by}:{SERVER_NAME}" if by else user_id
        return await self.event(room_id, sender, "m.room.member", {"membership": membership}, user_id)

    async def visibility(self, room_id: str, value: str) -> str:
        """Say who sees what is sent from now on."""
        return await self.event(
            room_id, ALICE, "m.room.history_visibility", {"history_visibility": value}, ""
        )


@asynccontextmanager
async def running_endpoints(
    dsn: str, *, rates: Mapping[str, Rate] | None = None, x_forwarded: bool = False
) -> AsyncIterator[RoomEndpoints]:
    """Serve the endpoints on a free port of the loopback, as behind a proxy with ``x_forwarded``."""
    clock, limiter, ignoring = SystemClock(), RateLimiter(rates or {}), Ignoring()
    forgotten: set[tuple[str, str]] = set()
    bad_aliases: set[str] = set()

    async with running_core(dsn) as core, aiohttp.ClientSession() as session:

        async def is_forgotten(user_id: str, room_id: str) -> bool:
            return (user_id, room_id) in forgotten

        async def set_member(
            actor: Actor, room_id: str, target: str, content: Mapping[str, Any], txn: Txn | None
        ) -> str:
            row = await core.writer.write(
                room_id,
                lambda draft: draft.add(
                    sender=actor.user_id, type="m.room.member", content=dict(content), state_key=target
                ),
                txn,
            )
            return row.event_id

        async def check_aliases(room: Room, content: Mapping[str, Any]) -> None:
            if content.get("alias") in bad_aliases:
                raise MatrixError("M_BAD_ALIAS", 400, "That alias points elsewhere")

        def limit(name: str, key: str) -> None:
            limiter.check(name, key, clock.monotonic())

        relation_store = RelationStore(core.database)
        visibility = Visibility(store=core.room_store, tail=core.tail)
        renderer = Renderer(
            previous_states=PreviousStates(events=core.events, tail=core.tail),
            visibility=visibility,
            memberships=core.memberships,
            relations=Relations(store=relation_store, tail=core.tail),
            erased=ErasedUsers(store=ErasureStore(core.database), tail=core.tail),
            clock=clock,
        )
        parts = {
            "access": RoomAccess(
                rooms=core.rooms,
                visibility=visibility,
                events=core.events,
                tail=core.tail,
                states_at=StateAt(
                    rooms=core.rooms, tail=core.tail, events=core.events, store=core.room_store
                ),
                is_forgotten=is_forgotten,
            ),
            "timeline": Timeline(events=core.events, tail=core.tail, relations=relation_store),
            "renderer": renderer,
            "events": core.events,
            "relation_store": relation_store,
            "ignored_users": ignoring,
            "sending": Sending(
                writer=core.writer,
                rooms=core.rooms,
                events=core.events,
                relations=relation_store,
                tail=core.tail,
                transactions=Transactions(
                    store=TransactionStore(core.database), appender=core.appender, tail=core.tail
                ),
                redactor=Redactor(
                    writer=core.writer,
                    events=core.events,
                    tail=core.tail,
                    limit=limit,
                    others_limit="rc_admin_redaction"
                    if "rc_admin_redaction" in (rates or {})
                    else "rc_message",
                ),
                set_member=set_member,
                check_aliases=check_aliases,
                limit=limit,
            ),
        }
        application = Application(
            {"client": bind(ROUTES, parts)},
            authentication=RequestAuthentication(Holders()),
            limiter=limiter,
            metrics=Metrics(),
        )
        edge = application.endpoint(["client"], x_forwarded=x_forwarded)
        listener = Listener(ListenerSettings((TcpAddress("127.0.0.1", 0),)), edge)
        await listener.start()
        address = listener.addresses[0]
        assert isinstance(address, TcpAddress)
        try:
            yield RoomEndpoints(
                core=core,
                url=f"http://127.0.0.1:{address.port}",
                session=session,
                renderer=renderer,
                parts=parts,
                ignoring=ignoring,
                forgotten=forgotten,
                bad_aliases=bad_aliases,
            )
        finally:
            await listener.stop(grace_s=2)


def forget_memory(core: Core) -> None:
    """Empty the tail, so that what follows is read from the database."""
    core.tail.reset(core.tail.pos)
