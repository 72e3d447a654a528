"""A listener that is left while its process runs on: nobody is cut off, and nobody stays."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.edge import V3, read_answer, serving

GET = f"GET {V3('/maybe')[0]} HTTP/1.1\r\nHost: a\r\n\r\n".encode()

WAIT = f"GET {V3('/wait')[0]} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


async def test_requests_that_came_together_are_all_answered() -> None:
    """A client that asks several things at once would get the first answer, and the others never."""
    async with serving() as edge, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(WAIT + GET * 2)
        await edge.waiting.begun.wait()
        edge.listener.leave(lambda begun: None)
        edge.waiting.release.set()
        answers = [await read_answer(reader) for _ in range(3)]
        assert [it.status for it in answers] == [200] * 3
        assert [it.headers.get("connection") for it in answers] == [None, None, "close"]
        assert await reader.read() == b""
        writer.close()


async def test_whoever_has_no_successor_ends_in_order() -> None:
    """A client would wait for the end of a connection on which nobody will ever answer, or find new ones."""
    async with serving() as edge, asyncio.timeout(10):
        idle = await asyncio.open_connection("127.0.0.1", edge.port)
        waits = await asyncio.open_connection("127.0.0.1", edge.port)
        idle[1].write(GET)
        assert (await read_answer(idle[0])).status == 200
        waits[1].write(WAIT)
        await edge.waiting.begun.wait()
        edge.listener.leave(lambda begun: None)
        assert await idle[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await _connect_for_ever(edge.port)
        edge.waiting.release.set()
        answer = await read_answer(waits[0])
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await waits[0].read() == b""
        for _, writer in (idle, waits):
            writer.close()


async def _connect_for_ever(port: int) -> None:
    while True:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
