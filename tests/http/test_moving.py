"""Connections that move to another worker: their client notices nothing, whatever becomes of the worker."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ranvier.http.app import Hear
from ranvier.http.open_connections import ConnectionLimits
from ranvier.http.request import Request
from ranvier.http.response import Response
from ranvier.processes import front_protocol
from ranvier.processes.front_end import Adopting
from ranvier.processes.front_protocol import Connection, Passed, Taken
from ranvier.processes.moving import Moving
from ranvier.processes.offers import Offers, take
from tests.http.edge import Edge, read_answer, serving
from tests.open_files import no_more_files

V3 = "/_matrix/client/v3"
GET = f"GET {V3}/maybe HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def put(text: str) -> bytes:
    """Give a request that writes."""
    body = f'{{"text":"{text}"}}'
    return f"PUT {V3}/note HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class AllElsewhere:
    """Know one other worker, which is to be asked for everything that is written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.crowded = False

    def is_current(self) -> bool:
        return True

    def catch_up(self) -> Awaitable[None] | None:
        return None

    def is_only_writer(self) -> bool:
        return False

    def is_crowded(self) -> bool:
        return self.crowded

    def relief(self) -> str | None:
        return self.name

    def target(self, request: Request) -> str | None:
        return self.name if request.method == "PUT" else None

    def home(self, request: Request) -> str | None:
        return None if self.crowded else self.target(request)

    async def ask(self, name: str, request: Request) -> Response | None:
        return None

    def pass_on(self, name: str, request: Request, hear: Hear) -> Callable[[], None] | None:
        return None


@dataclass
class Worker:
    """A server edge that gives connections away and takes them."""

    edge: Edge
    moving: Moving
    neighbours: AllElsewhere

    @property
    def answered(self) -> int:
        return self.edge.application.answered


@asynccontextmanager
async def worker(folder: Path, name: str, elsewhere: str, listener: str = "client") -> AsyncIterator[Worker]:
    """Run a worker that thinks that ``elsewhere`` is better asked; ``listener`` is what it answers at."""
    async with serving() as edge, asyncio.TaskGroup() as tasks:
        moving = Moving(folder=folder, own_name=name, adopting=Adopting({listener: edge.listener}, tasks))
        edge.application.neighbours = neighbours = AllElsewhere(elsewhere)
        moving.start()
        try:
            yield Worker(edge, moving, neighbours)
        finally:
            moving.close()


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[Worker]:
    """Give a worker that takes the other one for better."""
    async with worker(tmp_path, "a", "b") as one:
        yield one


@pytest.fixture
async def b(tmp_path: Path) -> AsyncIterator[Worker]:
    """Give the other one, which thinks the same of the first."""
    async with worker(tmp_path, "b", "a") as one:
        yield one


@asynccontextmanager
async def connected(one: Worker) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a worker."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.edge.port)
    async with asyncio.timeout(10):
        yield reader, writer
    writer.close()


async def test_a_connection_goes_on_at_the_worker_that_is_better_asked(a: Worker, b: Worker) -> None:
    """A client's connection would break, or each of its messages be passed on between workers."""
    async with connected(a) as (reader, writer):
        writer.write(put("one"))
        answer = await read_answer(reader)
        assert (answer.status, answer.json["text"]) == (200, "one")
        assert (a.answered, b.answered) == (0, 1)
        for _ in range(3):
            writer.write(GET)
            assert (await read_answer(reader)).status == 200
        assert (a.answered, b.answered) == (0, 4)
        # What is written next goes back, since the other one thinks the same of the first.
        for number in range(20):
            writer.write(put(str(number)))
            assert (await read_answer(reader)).json["text"] == str(number)
        assert (a.answered, b.answered) == (10, 14)
    assert a.edge.application.in_flight == b.edge.application.in_flight == 0


async def test_a_body_that_comes_in_pieces_arrives_whole(a: Worker, b: Worker) -> None:
    """A message would be cut off, or the rest of it be taken for the next request."""
    whole = put("x" * 5000)
    async with connected(a) as (reader, writer):
        for size in (whole.index(b"\r\n\r\n") + 4, whole.index(b"xx") + 1000, len(whole) - 1):
            writer.write(whole[:size])
            await asyncio.sleep(0.05)
            writer.write(whole[size:])
            assert (await read_answer(reader)).json["text"] == "x" * 5000
    assert a.answered + b.answered == 3
    assert b.answered


async def test_what_was_sent_together_is_answered_in_order(a: Worker, b: Worker) -> None:
    """Answers would come in another order than the requests, so each would be taken for another's."""
    async with connected(a) as (reader, writer):
        writer.write(b"".join(put(str(number)) for number in range(20)))
        assert [(await read_answer(reader)).json["text"] for _ in range(20)] == [str(n) for n in range(20)]
        # One and a half, and the rest of the second when the first is answered.
        first, second = put("first"), put("second")
        writer.write(first + second[:30])
        assert (await read_answer(reader)).json["text"] == "first"
        writer.write(second[30:])
        assert (await read_answer(reader)).json["text"] == "second"
        writer.write(put("last"))
        assert (await read_answer(reader)).json["text"] == "last"
    assert a.answered + b.answered == 23


async def test_a_client_that_polls_stays_where_it_is(a: Worker, b: Worker) -> None:
    """Each message of a client with one connection would make it sync from another worker's empty memory."""
    a.edge.waiting.release.set()
    async with connected(a) as (reader, writer):
        writer.write(f"GET {V3}/wait HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await read_answer(reader)).status == 200
        writer.write(put("one"))
        assert (await read_answer(reader)).status == 200
    assert (a.answered, b.answered) == (2, 0)


async def test_who_polls_goes_on_elsewhere_when_a_worker_has_too_much_to_do(a: Worker, b: Worker) -> None:
    """One worker would be at its limit for ever, and its clients wait, while others have nothing to do."""
    async with connected(a) as (reader, writer):

        async def poll(since: int) -> None:
            head = f"GET {V3}/poll?since=s{since} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alice\r\n\r\n"
            writer.write(head.encode())
            answer = await read_answer(reader)
            assert (answer.status, answer.json) == (200, {"since": f"s{since}"})

        for since in range(3):  # the first is parsed, the others are known
            await poll(since)
        assert (a.answered, b.answered) == (3, 0)
        a.neighbours.crowded = True
        writer.write(put("one"))
        assert (await read_answer(reader)).status == 200
        assert (a.answered, b.answered) == (4, 0), "only who polls does"
        for since in range(3, 6):
            await poll(since)
        assert (a.answered, b.answered) == (4, 3)
    async with connected(a) as (reader, writer):
        b.edge.waiting.release.set()
        writer.write(f"GET {V3}/wait HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await read_answer(reader)).json == {"waited": True}
        assert (a.answered, b.answered) == (4, 4), "a first poll, too"
        # Both have too much to do: it is answered where it is, and not sent to and fro.
        b.neighbours.crowded = True
        await poll(6)
        await poll(7)
    assert a.answered + b.answered == 10


async def test_who_polls_stays_when_nobody_takes_them(a: Worker) -> None:
    """A client would get no answer because the worker that had time is gone."""
    a.neighbours.crowded = True
    a.edge.waiting.release.set()
    async with connected(a) as (reader, writer):
        for _ in range(3):
            writer.write(f"GET {V3}/wait HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (await read_answer(reader)).json == {"waited": True}
    assert a.answered == 3


async def test_without_the_other_worker_it_is_answered_here(a: Worker) -> None:
    """Nobody could write to the rooms of a worker that is on another machine, or gone."""
    async with connected(a) as (reader, writer):
        writer.write(put("one"))
        assert (await read_answer(reader)).status == 200
    assert a.answered == 1


async def test_a_worker_that_drains_sends_it_back(a: Worker, b: Worker) -> None:
    """Requests would fail while a worker is restarted in good order."""
    async with connected(a) as (reader, writer), connected(a) as (other_reader, other_writer):
        writer.write(put("one"))
        assert (await read_answer(reader)).status == 200
        assert b.answered == 1
        b.moving.drain()
        other_writer.write(put("two"))
        assert (await read_answer(other_reader)).status == 200
    assert (a.answered, b.answered) == (1, 1)


@asynccontextmanager
async def frozen(folder: Path) -> AsyncIterator[socket.socket]:
    """Be a worker b that can be given connections and does nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        sock.bind(str(folder / "b.move"))
        sock.listen()
        yield sock


async def test_a_frozen_worker_does_not_keep_it(a: Worker, tmp_path: Path) -> None:
    """Whoever writes to a room of a worker that stands still would wait for ever."""
    async with frozen(tmp_path), connected(a) as (reader, writer):
        begun = time.monotonic()
        writer.write(put("one"))
        assert (await read_answer(reader)).status == 200
        assert time.monotonic() - begun < 5
        # That one is not asked again for a while.
        writer.write(put("two"))
        assert (await read_answer(reader)).json["text"] == "two"
    assert a.answered == 2


async def test_a_worker_that_dies_before_it_took_it_loses_nothing(a: Worker, tmp_path: Path) -> None:
    """A message would be lost with a worker that never read it."""
    async with connected(a) as (reader, writer):
        async with frozen(tmp_path):
            writer.write(put("one"))
            await asyncio.sleep(0.05)
        assert (await read_answer(reader)).json["text"] == "one"
    assert a.answered == 1


@asynccontextmanager
async def taking(folder: Path) -> AsyncIterator[asyncio.Queue[tuple[socket.socket, Connection, Passed]]]:
    """Be a worker b that a test plays: it is given the first offer of the first giver, with its socket."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[tuple[socket.socket, Connection, Passed]] = asyncio.Queue()
    givers: list[socket.socket] = []

    async def hear(listening: socket.socket) -> None:
        giver, _ = await loop.sock_accept(listening)
        givers.append(giver)
        while True:
            try:
                message, passed = front_protocol.receive(giver)
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            assert isinstance(message, Connection)
            assert passed is not None
            await heard.put((giver, message, passed))
            return

    async with frozen(folder) as listening:
        hearing = asyncio.create_task(hear(listening))
        try:
            yield heard
        finally:
            hearing.cancel()
            for giver in givers:
                giver.close()


async def test_what_a_worker_took_before_it_died_is_not_done_again(a: Worker, tmp_path: Path) -> None:
    """A message would be sent twice when a worker dies just then: the death is heard of before the taking."""
    async with connected(a) as (reader, writer), connected(a) as (other_reader, other_writer):
        async with taking(tmp_path) as heard:
            writer.write(put("taken"))
            giver, message, passed = await heard.get()
            sock = take(passed)
            assert sock is not None
            other_writer.write(put("unread"))
            await asyncio.sleep(0.05)
            # The giver stands still while both things happen; this is its thread.
            assert front_protocol.send(giver, Taken(message.id))
            giver.close()
        assert (await read_answer(other_reader)).json["text"] == "unread"
        sock.close()
        assert await reader.read() == b""
    assert a.answered == 1


class Copy:
    """A copy of a connection that its giver keeps until it is taken."""

    def let_go(self) -> None:
        pass


async def test_what_a_worker_gave_before_it_died_is_served(b: Worker, tmp_path: Path) -> None:
    """A client's connection would be reset because a worker died that had given it away before."""
    loop = asyncio.get_running_loop()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as one,
        socket.create_connection(listening.getsockname()) as two,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver,
    ):
        for client in (one, two):
            client.setblocking(False)
        giver.connect(str(tmp_path / "b.move"))
        offers: Offers[Copy] = Offers(giver)
        for number in range(2):
            server_side, _ = listening.accept()
            with server_side:
                assert offers.make(Copy(), server_side.fileno(), "client", put(f"text {number}"))
            if not number:
                # That it is taken is never read, and b has not heard of the second when the giver is gone.
                assert (await _answer(loop, one)).endswith(b'{"text":"text 0","stars":0}')
        giver.close()
        assert b'"text":"text 1"' in await _answer(loop, two)
    assert b.answered == 2


async def _answer(loop: asyncio.AbstractEventLoop, client: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await loop.sock_recv(client, 65536)


async def test_what_a_worker_took_without_a_word_is_not_done_again(a: Worker, tmp_path: Path) -> None:
    """A message would be sent twice by a worker that stands still right after it took it."""
    async with connected(a) as (reader, writer), taking(tmp_path) as heard:
        writer.write(put("taken"))
        _, message, passed = await heard.get()
        sock = take(passed)
        assert sock is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 1)
        assert message.begun == put("taken")
        sock.send(b"x")
        assert await reader.read(1) == b"x"  # nobody else has let it go, or reads from it
        sock.close()
    assert a.answered == 0


async def test_what_was_taken_back_is_not_begun(a: Worker, tmp_path: Path) -> None:
    """A worker that stood still would do again what the other one has done itself meanwhile."""
    async with connected(a) as (reader, writer), taking(tmp_path) as heard:
        writer.write(put("late"))
        _, _, passed = await heard.get()
        assert (await read_answer(reader)).json["text"] == "late"
        assert take(passed) is None
    assert a.answered == 1


async def test_a_worker_that_ends_has_back_what_nobody_took(a: Worker, tmp_path: Path) -> None:
    """A request would be lost that was on its way between two workers when one of them stopped."""
    async with connected(a) as (reader, writer), frozen(tmp_path):
        writer.write(put("one"))
        async with asyncio.timeout(5):
            while not a.moving._peers:
                await asyncio.sleep(0.001)
        begun = time.monotonic()
        await a.moving.settle()
        await a.edge.listener.stop(grace_s=20)
        assert (await read_answer(reader)).json["text"] == "one"
        assert time.monotonic() - begun < 10
    assert a.answered == 1


async def test_a_worker_with_too_many_connections_sends_it_back(a: Worker, tmp_path: Path) -> None:
    """A client would be turned away by a full worker, and the one that it came to has room."""
    async with serving(limits=ConnectionLimits(max_connections=0)) as edge, asyncio.TaskGroup() as tasks:
        full = Moving(folder=tmp_path, own_name="b", adopting=Adopting({"client": edge.listener}, tasks))
        full.start()
        async with connected(a) as (reader, writer):
            writer.write(put("one"))
            assert (await read_answer(reader)).status == 200
        full.close()
    assert a.answered == 1


async def test_a_worker_that_has_no_such_listener_sends_it_back(a: Worker, tmp_path: Path) -> None:
    """Who writes at a public port would be given what only administrators get at another one."""
    async with worker(tmp_path, "b", "a", listener="console") as other, connected(a) as (reader, writer):
        writer.write(put("one"))
        assert (await read_answer(reader)).json["text"] == "one"
        assert (a.answered, other.answered) == (1, 0)


async def test_a_worker_takes_connections_again_when_it_may_open_files(a: Worker, tmp_path: Path) -> None:
    """After one moment with too many connections no other worker could ever give it any until its restart."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as giver:
        with no_more_files():
            giver.connect(str(tmp_path / "a.move"))
            await asyncio.sleep(0.1)
            assert not a.moving._givers
        async with asyncio.timeout(10):
            while not a.moving._givers:
                await asyncio.sleep(0.02)
