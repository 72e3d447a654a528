"""HTTP/1.1 as clients and proxies speak it, beyond the plain request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ranvier.http.app import Timeouts
from ranvier.http.listeners import TcpAddress
from ranvier.http.open_connections import ConnectionLimits
from tests.http.edge import Edge, client, read_answer, serving

V3 = "/_matrix/client/v3"


async def test_a_client_may_ask_before_it_sends_its_body() -> None:
    """curl would wait a second before each upload, or for ever."""
    async with serving() as edge, client(edge) as ask:
        head = f"PUT {V3}/note HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n"
        ask.writer.write(head.encode())
        assert await ask.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await ask.raw(b'{"text":"hi"}')).json == {"text": "hi", "stars": 0}


async def test_a_body_that_nobody_wants_is_not_taken_for_a_request() -> None:
    """A refused upload's bytes would be answered as if they were requests."""
    async with serving() as edge, client(edge) as ask:
        head = f"PUT {V3}/whoami HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        answer = await ask.raw(head.encode())
        assert (answer.status, answer.headers["connection"]) == (405, "close")
    async with serving() as edge, client(edge) as ask:
        body = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        assert (await ask.ask("POST", f"{V3}/whoami", body)).status == 405
        assert (await ask.get(f"{V3}/maybe")).json == {"user_id": None}


async def test_old_clients_get_whole_answers() -> None:
    """A proxy that speaks HTTP/1.0 (nginx, unless told otherwise) would pass on chunk marks as content."""
    async with serving() as edge, client(edge) as ask:
        ask.writer.write(f"GET {V3}/download HTTP/1.0\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(ask.reader.read(), 10)).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"x" * 500_000


async def test_a_head_in_pieces_before_a_large_body() -> None:
    """An upload whose head comes in two packets would be refused because of the size of its body."""
    async with serving(limits=ConnectionLimits(max_head_bytes=4096)) as edge, client(edge) as ask:
        ask.writer.write(f"POST {V3}/upload HTTP/1.1\r\nHost: a\r\nConte".encode())
        await asyncio.sleep(0)
        assert (await ask.raw(b"nt-Length: 200000\r\n\r\n" + b"x" * 200_000)).json == {"size": 200_000}


async def test_a_long_poll_behind_another_request_notices_that_its_client_left() -> None:
    """Waiting syncs of clients that left would pile up."""
    async with serving() as edge:
        async with client(edge) as ask:
            for name in ("maybe", "wait"):
                ask.writer.write(f"GET {V3}/{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (await read_answer(ask.reader)).status == 200
            await asyncio.wait_for(edge.waiting.begun.wait(), 5)
        await asyncio.wait_for(edge.waiting.cancelled.wait(), 5)
        await edge.idle()


async def test_an_upload_whose_client_leaves_ends() -> None:
    """Uploads broken off half way would take a place in the server each."""
    async with serving() as edge:
        async with client(edge) as ask:
            ask.writer.write(
                f"POST {V3}/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx".encode()
            )
            async with client(edge) as other:
                await other.get("/health")
            assert edge.application.in_flight == 1
        await edge.idle()
        assert not edge.listener._state.exchanges


async def test_a_target_with_a_host() -> None:
    """Clients of a forward proxy would get 404 for everything."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"http://a{V3}/query?limit=5#part")
        assert answer.json["limit"] == 5
        assert (await ask.get(f"{V3}/query?limit=6#part")).json["limit"] == 6


async def test_requests_that_wait_for_others_are_bounded() -> None:
    """One packet could make the server hold thousands of requests."""
    async with serving() as edge, client(edge) as ask:
        ask.writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        answers = await asyncio.wait_for(ask.reader.read(), 10)
        assert answers.count(b"HTTP/1.1 ") <= 258
        async with client(edge) as other:
            assert (await other.get("/health")).status == 200


@asynccontextmanager
async def deaf(edge: Edge, data: bytes) -> AsyncIterator[socket.socket]:
    """Have a client send something, and read nothing of what it is answered."""
    loop = asyncio.get_running_loop()
    (address,) = edge.listener.addresses
    assert isinstance(address, TcpAddress)
    (server,) = edge.listener._servers
    server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what it accepts has it, too
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, (address.host, address.port))
        sending = asyncio.create_task(loop.sock_sendall(sock, data))
        while not edge.listener.connections:
            await asyncio.sleep(0.01)
        try:
            yield sock
        finally:
            sending.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await sending


async def no_connections(edge: Edge) -> None:
    """Wait until nobody is connected, and nothing is being answered."""
    async with asyncio.timeout(30):
        while edge.listener.connections or edge.application.in_flight:
            await asyncio.sleep(0.01)


_ECHOES = f"GET {V3}/rooms/x/state/y HTTP/1.1\r\nHost: a\r\nUser-Agent: {'x' * 8000}\r\n\r\n"
_PIECES = f"GET {V3}/endless HTTP/1.1\r\nHost: a\r\nUser-Agent: {'x' * 8000}\r\n\r\n"
_UNKNOWN = f"GET /{'x' * 8000} HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("request_", [_ECHOES, _PIECES, _UNKNOWN], ids=["answers", "a stream", "errors"])
async def test_a_client_that_takes_no_answers_is_cut(request_: str) -> None:
    """Anybody could take all places of a server for ever: ask a thousand times, and read nothing."""
    async with serving(timeouts=Timeouts(chunk_s=0.1)) as edge:
        async with deaf(edge, request_.encode() * 2000):
            await no_connections(edge)
        async with client(edge) as ask:
            assert (await ask.get("/health")).status == 200


async def test_a_client_that_is_refused_and_takes_no_answers_is_cut() -> None:
    """The same, with a request behind the others that is broken off."""
    limits = ConnectionLimits(max_head_bytes=16 << 20, head_timeout_s=1.0, keep_alive_s=0.1)
    echo = _ECHOES.replace("x" * 8000, "x" * 8_000_000)
    async with serving(limits=limits) as edge, deaf(edge, f"{echo}GET / HTTP/1.1\r\nHo".encode()):
        await no_connections(edge)


async def read_slowly(sock: socket.socket, size: int) -> bytes:
    """Take as many bytes, some at a time; fewer if the connection ends."""
    loop, taken = asyncio.get_running_loop(), b""
    async with asyncio.timeout(30):
        while len(taken) < size and (piece := await loop.sock_recv(sock, 100_000)):
            taken += piece
            await asyncio.sleep(0.005)
    return taken


async def test_a_client_that_takes_its_answers_slowly_gets_them() -> None:
    """Whoever has a slow line, and asks for something else meanwhile, would get half of a large answer."""
    echo = _ECHOES.replace("x" * 8000, "x" * 2_000_000)
    limits = ConnectionLimits(max_head_bytes=16 << 20)
    async with (
        serving(limits=limits, timeouts=Timeouts(chunk_s=0.1)) as edge,
        deaf(edge, f"{echo}GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()) as sock,
    ):
        answers = await read_slowly(sock, 16 << 20)
    assert len(answers) > 2_000_000
    assert answers.endswith(b"OK")


async def test_a_large_answer_is_sent_before_the_server_stops() -> None:
    """With each restart those who were just getting their rooms would get half of them."""
    echo = _ECHOES.replace("x" * 8000, "x" * 2_000_000)
    async with serving(limits=ConnectionLimits(max_head_bytes=16 << 20)) as edge:
        async with deaf(edge, echo.encode()) as sock:
            begun = await read_slowly(sock, 1)
            reading = asyncio.create_task(read_slowly(sock, 16 << 20))
            await edge.listener.stop(grace_s=20)
            assert not edge.listener.connections, "the process would end now"
            rest = await reading
        head, _, body = (begun + rest).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        assert len(body) > 2_000_000
