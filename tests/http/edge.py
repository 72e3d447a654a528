"""A server edge on real sockets for the tests: endpoints that show what a handler sees, and raw clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson

from ranvier.http.app import Application, Timeouts
from ranvier.http.authentication import RequestAuthentication, unknown_token
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress, TlsFiles, UnixAddress
from ranvier.http.metrics import HEALTH_ROUTES, METRICS_ROUTES, Metrics
from ranvier.http.open_connections import ConnectionLimits
from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.http.route import Auth, Route, bind, versions
from ranvier.spec.errors import forbidden
from ranvier.users.requester import Requester

V3 = versions("v3", "r0")


class Note(msgspec.Struct):
    """A body with two fields."""

    text: str
    stars: int = 0


@dataclass
class Waiting:
    """What the long poll tells the test."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[str] = field(default_factory=list)


async def whoami(request: Request) -> dict[str, Any]:
    return {"user_id": request.user.user_id}


async def maybe(request: Request) -> dict[str, Any]:
    requester = request.requester_or_none
    return {"user_id": requester.user_id if requester else None}


async def show(request: Request) -> dict[str, Any]:
    return {"params": request.params, "ip": request.ip, "scheme": request.scheme, "agent": request.user_agent}


async def query(request: Request) -> dict[str, Any]:
    return {
        "limit": request.int_param("limit", 10, 1, 100),
        "full": request.bool_param("full"),
        "dir": request.choice_param("dir", ("b", "f"), "b"),
        "via": request.list_param("via"),
        "from": request.str_param("from", None),
    }


async def put_note(request: Request) -> dict[str, Any]:
    note = request.json(Note)
    return {"text": note.text, "stars": note.stars}


async def put_object(request: Request) -> dict[str, Any]:
    return {"keys": len(request.json_object())}


async def upload(request: Request) -> dict[str, Any]:
    return {"size": len(request.body)}


async def download(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 100_000

    return Response(200, chunks(), {"Content-Disposition": "inline"}, content_type="image/png")


async def endless(request: Request, *, waiting: Waiting) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            waiting.release.set()

    return Response(200, chunks(), content_type="image/png")


async def unencodable(request: Request) -> dict[str, Any]:
    return {"value": object()}


async def breaks(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the disk is gone")

    return Response(200, chunks(), content_type="image/png")


async def wait(request: Request, *, waiting: Waiting) -> bytes:
    waiting.begun.set()
    try:
        await waiting.release.wait()
    except asyncio.CancelledError:
        waiting.cancelled.set()
        raise
    return b'{"waited":true}'


async def poll(request: Request) -> bytes:
    return b'{"since":"%b"}' % request.str_param("since").encode()


class Poll:
    """Answer without a task."""

    def begin(self, requester: Requester, since: bytes) -> bytes:
        return b'{"since":"%b"}' % since


def poll_at_once(query: bytes) -> Poll:
    return Poll()


async def say(request: Request, *, waiting: Waiting) -> Response | dict[str, Any]:
    text = request.json(Note).text
    waiting.said.append(text)
    if text == "wait":
        waiting.begun.set()
        await waiting.release.wait()
    if text == "refuse":
        raise forbidden("Not you")
    if text == "special":
        return Response(201, b"said", {"X-Said": "yes"}, content_type="text/plain")
    params = dict(request.params)
    return {"said": text, "by": request.user.user_id, "in": params["room_id"], "agent": request.user_agent}


async def refuse(request: Request) -> bytes:
    raise forbidden("Not you")


async def fail(request: Request) -> bytes:
    raise RuntimeError("secret of the server")


async def echo_header(request: Request) -> Response:
    return Response(200, {}, {"X-Echo": request.str_param("value")})


ROUTES = [
    Route("GET", V3("/whoami"), whoami),
    Route("GET", V3("/guest"), whoami, auth=Auth.GUEST, name="guest"),
    Route("GET", V3("/admin"), whoami, auth=Auth.ADMIN, name="admin"),
    Route("GET", V3("/maybe"), maybe, auth=Auth.OPTIONAL),
    Route("GET", V3("/rooms/{room_id}/state/{event_type}"), show, auth=Auth.NONE, placed_by="room_id"),
    Route("PUT", V3("/rooms/{room_id}/state/{event_type}"), put_object, auth=Auth.NONE),
    Route("GET", V3("/query"), query, auth=Auth.NONE),
    Route("PUT", V3("/note"), put_note, auth=Auth.NONE, max_body=10_000),
    Route(
        "PUT", V3("/rooms/{room_id}/say/{txn_id}"), say, placed_by="room_id", limit="rc_test", max_body=9999
    ),
    Route("POST", V3("/rooms/{room_id}/say"), say, placed_by="room_id", name="say_again"),
    Route("PUT", V3("/rooms/{room_id}/say"), say, placed_by="room_id", name="say_as_state"),
    Route("POST", V3("/object"), put_object, auth=Auth.NONE),
    Route("POST", V3("/upload"), upload, auth=Auth.NONE, max_body=300_000),
    Route("GET", V3("/download"), download, auth=Auth.NONE),
    Route("GET", V3("/endless"), endless, auth=Auth.NONE),
    Route("GET", V3("/unencodable"), unencodable, auth=Auth.NONE),
    Route("GET", V3("/breaks"), breaks, auth=Auth.NONE),
    Route("GET", V3("/wait"), wait, auth=Auth.NONE, long_poll=True),
    Route("GET", V3("/poll"), poll, auth=Auth.GUEST, long_poll=True, at_once=poll_at_once),
    Route("GET", V3("/finish"), wait, auth=Auth.NONE, name="finish"),
    Route("GET", V3("/refuse"), refuse, auth=Auth.NONE),
    Route("GET", V3("/fail"), fail, auth=Auth.NONE),
    Route("GET", V3("/limited"), maybe, auth=Auth.OPTIONAL, limit="rc_test", name="limited"),
    Route("GET", V3("/echo"), echo_header, auth=Auth.NONE),
]

HOLDERS = {
    "alice": Requester("@alice:test", "PHONE"),
    "guest": Requester("@1:test", "WEB", is_guest=True),
    "admin": Requester("@admin:test", "DESK", is_admin=True),
    "bridge": Requester("@bridge:test", appservice_id="irc", rate_limited=False),
}


class Tokens:
    """Know some tokens."""

    async def authenticate(self, token: str) -> Requester:
        if token == "expired":
            raise unknown_token(soft_logout=True)
        if token not in HOLDERS:
            raise unknown_token()
        return HOLDERS[token]

    def key(self, token: str) -> bytes:
        return token.encode()

    def known(self, key: bytes) -> Requester | None:
        return HOLDERS.get(key.decode())


@dataclass
class Edge:
    """A running edge."""

    application: Application
    listener: Listener
    waiting: Waiting
    metrics: Metrics
    ready: list[bool]

    @property
    def port(self) -> int:
        address = self.listener.addresses[0]
        assert isinstance(address, TcpAddress)
        return address.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def idle(self) -> None:
        """Wait until nothing is being answered."""
        async with asyncio.timeout(10):
            while self.application.in_flight:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    *,
    path: Path | None = None,
    mode: int = 0o660,
    tls: TlsFiles | None = None,
    x_forwarded: bool = False,
    allow_query_token: bool = False,
    limits: ConnectionLimits | None = None,
    timeouts: Timeouts | None = None,
    resources: tuple[str, ...] = ("client", "health", "metrics"),
) -> AsyncIterator[Edge]:
    """Serve ROUTES on a free port, or on a socket file."""
    waiting, metrics, ready = Waiting(), Metrics(), [True]
    parts: Mapping[str, object] = {"waiting": waiting, "metrics": metrics, "ready": lambda: ready[0]}
    application = Application(
        {
            "client": bind(ROUTES, parts),
            "health": bind(HEALTH_ROUTES, parts),
            "metrics": bind(METRICS_ROUTES, parts),
        },
        authentication=RequestAuthentication(Tokens(), allow_query_token=allow_query_token),
        limiter=RateLimiter({"rc_test": Rate(0.1, 2)}),
        metrics=metrics,
        timeouts=timeouts,
    )
    address = UnixAddress(path, mode) if path else TcpAddress("127.0.0.1", 0)
    settings = ListenerSettings((address,), tls=tls, limits=limits or ConnectionLimits())
    listener = Listener(settings, application.endpoint(resources, x_forwarded=x_forwarded))
    await listener.start()
    try:
        yield Edge(application, listener, waiting, metrics, ready)
    finally:
        waiting.release.set()
        await listener.stop(grace_s=2)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def read_answer(reader: asyncio.StreamReader, *, bodiless: bool = False) -> Answer:
    """Read one answer from a raw connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    status = int(head[0].split(" ")[1])
    if bodiless or status in (204, 304):
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return Answer(status, headers, body)
    return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


class Client:
    """One raw connection, so that a test may send what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def raw(self, data: bytes) -> Answer:
        self.writer.write(data)
        return await asyncio.wait_for(read_answer(self.reader, bodiless=data.startswith(b"HEAD")), 10)

    async def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.ask("GET", target, **headers)


@asynccontextmanager
async def client(edge: Edge) -> AsyncIterator[Client]:
    """Connect to an edge."""
    address = edge.listener.addresses[0]
    if isinstance(address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(str(address.path))
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
