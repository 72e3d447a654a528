"""HTTP/1.1 as clients and proxies speak it, beyond the plain request."""

from __future__ import annotations

import asyncio

from ranvier.http.connection import ConnectionLimits
from tests.http.edge import client, read_answer, serving

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
        await asyncio.wait_for(edge.application.wait_idle(), 5)


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
        await asyncio.wait_for(edge.application.wait_idle(), 5)
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
