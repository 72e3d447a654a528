"""Requests that another worker answers: their client cannot tell, whatever becomes of that worker."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from ranvier.cluster.currency import Currency
from ranvier.cluster.forwarding import ForwardedHere, Forwarding
from ranvier.cluster.link import Link, LinkServer, NotAcceptedError, connect
from ranvier.http.forwarding import ForwardedRequests, Neighbours
from ranvier.http.request import Request
from ranvier.http.request_log import LOGGER_NAME
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError
from ranvier.users.accounts import TOKEN_ROWS
from ranvier.wire.log_rows import LogRow
from tests.http.edge import HOLDERS, Answer, Client, Edge, client, read_answer, serving

V3 = "/_matrix/client/v3"
BRIDGE = "Bearer bridge"  # whom no limit holds up


class Current:
    """Have nothing to catch up with."""

    def is_current(self) -> bool:
        return True

    def catch_up(self) -> Awaitable[None] | None:
        return None


@dataclass
class OneLink:
    """Know the link to the one other worker."""

    link: Link

    def find(self, name: str) -> Link | None:
        return self.link if self.link.is_open else None


class AllElsewhere(Neighbours):
    """Have another worker answer everything that is written."""

    def __init__(self, link: Link, currency: Current) -> None:
        links = cast(Any, OneLink(link))
        self._forwarding = Forwarding(placement=cast(Any, None), links=links, own_name="a")
        self._currency = cast(Currency, currency)
        self._tail = Tail()

    def is_only_writer(self) -> bool:
        return False

    def is_crowded(self) -> bool:
        return False

    def target(self, request: Request) -> str | None:
        return "b" if request.method in ("PUT", "POST") else None


@dataclass
class Pair:
    """Two workers: ``a`` passes on to ``b`` what is written, by ``server`` of that one."""

    a: Edge
    b: Edge
    server: LinkServer
    here: Current
    log: Tail


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Run both."""
    here, log = Current(), Tail()
    async with serving() as a, serving() as b:
        requests = ForwardedRequests(
            application=b.application,
            router=b.application.endpoint(["client"]).router,
            currency=cast(Currency, Current()),
            tail=log,
        )
        server = LinkServer(
            secret="x",
            answer=ForwardedHere(perform=requests.perform).answer,
            greet=lambda value: None,
        )
        sock = socket.create_server(("127.0.0.1", 0))
        await server.listen(sock)
        address = f"tcp:127.0.0.1:{sock.getsockname()[1]}"
        link = await connect(address, secret="x", announcement=b"", lost=lambda: None)
        a.application.neighbours = AllElsewhere(link, here)
        try:
            async with asyncio.timeout(20):
                yield Pair(a, b, server, here, log)
        finally:
            a.waiting.release.set()
            b.waiting.release.set()
            link.close()
            await server.stop(1)


@pytest.fixture
async def alone() -> AsyncIterator[Edge]:
    """Run a worker that does all by itself."""
    async with serving() as edge:
        yield edge


def put(text: str, *lines: str, token: str = "bridge") -> bytes:
    """Give a request that writes."""
    body = f'{{"text":"{text}"}}'
    head = [
        f"PUT {V3}/rooms/%21room/say/{len(text)} HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", body]).encode()


async def say(asking: Client, text: str, **headers: str) -> Answer:
    """Write something as a user whom no limit holds up."""
    return await asking.ask(
        "PUT", f"{V3}/rooms/!room/say/1", f'{{"text":"{text}"}}'.encode(), Authorization=BRIDGE, **headers
    )


@asynccontextmanager
async def asked(pair: Pair, request: bytes) -> AsyncIterator[Client]:
    """Send a request that the other worker has begun, and not answered."""
    async with client(pair.a) as one:
        one.writer.write(request)
        await pair.b.waiting.begun.wait()
        yield one


async def test_another_worker_answers(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Who polls on their only connection could not write in rooms of others; or it is not in the log."""
    pair.a.waiting.release.set()
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        async with client(pair.a) as one:
            assert (await one.get(f"{V3}/wait")).json == {"waited": True}
            for number in range(3):
                answer = await say(one, f"text {number}", User_Agent="a browser")
                assert answer.status == 200
                assert answer.json == {
                    "said": f"text {number}",
                    "by": "@bridge:test",
                    "in": "!room",
                    "agent": "a browser",
                }
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], ["text 0", "text 1", "text 2"])
    assert (pair.a.application.answered, pair.b.application.answered_for_others) == (4, 3)
    assert (pair.a.application.answered_for_others, pair.b.application.answered) == (0, 3)
    assert pair.a.application.in_flight == pair.b.application.in_flight == 0
    lines = [line for line in caplog.messages if "/say/1 200 " in line]
    assert len(lines) == 3
    assert all("user=@bridge:test ip=127.0.0.1" in line for line in lines)


async def test_the_access_token_stays_here(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens between two machines could act in the user's name for ever."""
    heard: list[bytes] = []
    answer = pair.server.answer

    async def listen(body: bytes) -> bytes:
        heard.append(body)
        return await answer(body)

    monkeypatch.setattr(pair.server, "answer", listen)
    async with client(pair.a) as one:
        assert (await say(one, "secret")).status == 200
    assert b"secret" in heard[0]
    assert b"Bearer" not in heard[0]


async def test_what_follows_on_the_connection_waits_its_turn(pair: Pair) -> None:
    """A client that sends several requests at once would take one answer for another."""
    get = f"GET {V3}/whoami HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alice\r\n\r\n".encode()
    async with asked(pair, put("wait") + get + put("two") + get) as one:
        pair.b.waiting.release.set()
        answers = [(await read_answer(one.reader)).json for _ in range(4)]
    assert [answer.get("said") or answer["user_id"] for answer in answers] == [
        "wait",
        "@alice:test",
        "two",
        "@alice:test",
    ]
    assert pair.b.waiting.said == ["wait", "two"]


async def test_a_body_that_comes_in_pieces_arrives_whole(pair: Pair) -> None:
    """A long message would be cut off at the other worker, or be taken for the next request."""
    whole = put("x" * 5000)
    async with client(pair.a) as one:
        for size in (10, whole.index(b"\r\n\r\n") + 4, whole.index(b"xx") + 1000, len(whole) - 1):
            one.writer.write(whole[:size])
            await asyncio.sleep(0.05)
            assert (await one.raw(whole[size:])).json["said"] == "x" * 5000
    assert pair.b.waiting.said == ["x" * 5000] * 4


async def test_a_client_that_leaves_does_not_stop_it(pair: Pair) -> None:
    """A message would be lost because its writer lost their network; or the worker never be done with it."""
    async with asked(pair, put("wait")):
        pass
    await asyncio.sleep(0.05)
    assert pair.a.application.in_flight == 1
    pair.b.waiting.release.set()
    await pair.a.idle()
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], ["wait"])


@pytest.mark.parametrize("whole", [True, False])
async def test_what_is_not_accepted_is_done_here_and_counted_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Nobody could write while a worker drains; or each message would count twice against their limit."""

    async def refuse(body: bytes) -> bytes:
        raise NotAcceptedError

    monkeypatch.setattr(pair.server, "answer", refuse)
    statuses = []
    async with client(pair.a) as one:
        for text in ("one", "two", "three"):
            request = put(text, token="alice")
            if not whole:
                one.writer.write(request[:-3])
                await asyncio.sleep(0.05)
            statuses.append((await one.raw(request if whole else request[-3:])).status)
    assert statuses == [200, 200, 429]
    assert (pair.a.waiting.said, pair.b.waiting.said) == (["one", "two"], [])


async def test_what_a_worker_that_is_far_behind_gives_back_is_done_here(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rooms of a worker that has to catch up could not be written to, from workers that are up to date."""

    async def behind() -> None:
        raise MatrixError("M_UNKNOWN", 503, "This worker is behind the others; try again")

    monkeypatch.setattr(Current, "catch_up", lambda _: behind())
    async with client(pair.a) as one:
        assert (await say(one, "one")).json["said"] == "one"
    assert (pair.a.waiting.said, pair.b.waiting.said) == (["one"], [])


async def test_a_worker_that_is_behind_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer would get no answer from it, and nobody would see how far it has to go."""
    never = asyncio.Event()
    monkeypatch.setattr(pair.here, "is_current", lambda: False)
    monkeypatch.setattr(pair.here, "catch_up", never.wait)
    async with client(pair.a) as one:
        assert (await one.ask("GET", "/health")).status == 200
        assert (await one.ask("GET", "/metrics")).status == 200


async def test_a_worker_that_is_behind_passes_on_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes on the connection on which they poll would wait for Redis before each message."""
    never = asyncio.Event()
    monkeypatch.setattr(pair.here, "is_current", lambda: False)
    monkeypatch.setattr(pair.here, "catch_up", never.wait)
    async with client(pair.a) as one:
        assert (await say(one, "one")).json["said"] == "one"
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], ["one"])


@pytest.mark.parametrize("kind", [TOKEN_ROWS, "receipt"])
async def test_who_logged_out_writes_nothing_through_a_worker_that_has_not_heard_of_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A stolen token would be good for a message more, after its owner was told that it is dead."""
    caught_up = asyncio.Event()
    monkeypatch.setattr(pair.here, "is_current", lambda: False)
    monkeypatch.setattr(pair.here, "catch_up", caught_up.wait)
    pair.log.apply([LogRow(kind=kind, user_id="@alice:test", pos=1)], 1)
    async with client(pair.a) as one:
        asked = asyncio.create_task(one.raw(put("x", token="alice")))
        if kind == TOKEN_ROWS:
            await asyncio.sleep(0.1)
            assert not asked.done()
            monkeypatch.delitem(HOLDERS, "alice")
            caught_up.set()
        answer = await asked
    said = [] if kind == TOKEN_ROWS else ["x"]
    assert answer.status == (401 if kind == TOKEN_ROWS else 200)
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], said)


async def test_a_worker_that_has_just_started_takes_nothing_on_trust(pair: Pair) -> None:
    """Who logged out just before it started could write through a worker that has not heard of it."""
    pair.log.reset(5)
    async with client(pair.a) as one:
        assert (await say(one, "one")).json["said"] == "one"
    assert (pair.a.waiting.said, pair.b.waiting.said) == (["one"], [])


async def test_a_worker_of_before_is_answered(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """While workers are updated one by one, those of before would have to write in all rooms themselves."""
    answer = pair.server.answer

    async def without_the_last(body: bytes) -> bytes:
        return await answer(msgspec.msgpack.encode(msgspec.msgpack.decode(body)[:-1]))

    monkeypatch.setattr(pair.server, "answer", without_the_last)
    pair.log.reset(5)
    async with client(pair.a) as one:
        assert (await say(one, "one")).json["said"] == "one"
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], ["one"])


async def test_a_frozen_worker_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes to a room of a worker that stands still would wait for ever."""
    monkeypatch.setattr(pair.server, "start", lambda work: work.close())
    async with client(pair.a) as one:
        assert (await say(one, "one")).json["said"] == "one"
    assert (pair.a.waiting.said, pair.b.waiting.said) == (["one"], [])


async def test_what_a_worker_died_with_is_done_again_where_that_is_harmless(pair: Pair) -> None:
    """A message would be lost with the worker that it was passed on to."""
    pair.a.waiting.release.set()
    async with asked(pair, put("wait")) as one:
        await pair.server.stop(0)
        assert (await read_answer(one.reader)).json["said"] == "wait"
        assert (await say(one, "two")).json["said"] == "two"
    assert (pair.a.waiting.said, pair.b.waiting.said) == (["wait", "two"], ["wait"])


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
async def test_what_a_worker_died_with_is_not_done_again_where_that_may_harm(
    pair: Pair, method: bytes
) -> None:
    """What has no name of its own, as a new room, would be made twice; or newer state be undone."""
    request = put("wait").replace(b"PUT", method).replace(b"/say/4", b"/say")
    pair.a.waiting.release.set()
    async with asked(pair, request) as one:
        await pair.server.stop(0)
        answer = await read_answer(one.reader)
    assert (answer.status, answer.json["errcode"]) == (503, "M_UNKNOWN")
    assert "look before you try again" in answer.json["error"]
    assert (pair.a.waiting.said, pair.b.waiting.said) == ([], ["wait"])


async def test_a_worker_that_stops_says_so(pair: Pair) -> None:
    """A client's connection would break without a word, and a stop never end."""
    async with asked(pair, put("wait")) as one:
        stopping = asyncio.create_task(pair.a.listener.stop(grace_s=0.3))
        answer = await read_answer(one.reader)
        assert (answer.status, answer.json["error"]) == (503, "The server is stopping")
        assert answer.headers["connection"] == "close"
        await stopping
    assert pair.a.application.in_flight == 0


ALIKE = {
    "an error": put("refuse"),
    "no JSON": put("x").replace(b'"text"', b'"text '),
    "another status and headers": put("special"),
    "a body that is too large": put("x" * 10_000),
    "an unknown token": put("x", token="nobody"),
    "no token": put("x").replace(b"Authorization", b"Nothing"),
    "a strange token": put("x").replace(b"Bearer bridge", b"Basic bridge"),
    "the last request": put("x", "Connection: close"),
    "a client that would have waited": put("x", "Expect: 100-continue"),
    "a head alone": put("x").replace(b"PUT", b"HEAD"),
}


@pytest.mark.parametrize("request_", ALIKE.values(), ids=ALIKE)
async def test_an_answer_looks_as_if_it_were_made_here(pair: Pair, alone: Edge, request_: bytes) -> None:
    """What a client is told, and whether its connection goes on, would depend on who has the room."""
    async with client(pair.a) as one, client(alone) as other:
        elsewhere, here = await one.raw(request_), await other.raw(request_)
        if "connection" in here.headers:
            assert await one.reader.read() == await other.reader.read() == b""
    assert elsewhere == here


async def test_a_limit_is_the_same_wherever_it_is_answered(pair: Pair, alone: Edge) -> None:
    """Who writes in rooms of other workers could write more than others, or less."""
    statuses: list[list[int]] = []
    for edge in (pair.a, alone):
        async with client(edge) as one:
            answers = [await one.raw(put("x", token="alice")) for _ in range(4)]
        statuses.append([answer.status for answer in answers])
        assert answers[2].json["errcode"] == "M_LIMIT_EXCEEDED"
        assert "retry-after" in answers[2].headers
    assert statuses == [[200, 200, 429, 429]] * 2
    assert pair.b.waiting.said == ["x", "x"]
