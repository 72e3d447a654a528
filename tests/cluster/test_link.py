"""The wire between two workers, and which worker has what."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from ranvier.cluster import frames
from ranvier.cluster.link import Link, LinkLostError, LinkServer, NotAcceptedError, connect
from ranvier.cluster.placement import ROOM, ranked

SECRET = "a secret of the tests"


@asynccontextmanager
async def served(
    answer: Callable[[bytes], Awaitable[bytes]],
    clock: Callable[[], float] = time.monotonic,
    notice: Callable[[bytes], None] = lambda body: None,
) -> AsyncIterator[tuple[LinkServer, str, list[bytes]]]:
    """Serve calls on a free port; give the server, its address, and who greeted."""
    greeted: list[bytes] = []
    server = LinkServer(secret=SECRET, answer=answer, greet=greeted.append, clock=clock, notice=notice)
    sock = socket.create_server(("127.0.0.1", 0))
    await server.listen(sock)
    try:
        yield server, f"tcp:127.0.0.1:{sock.getsockname()[1]}", greeted
    finally:
        await server.stop(0.1)


async def linked(address: str, secret: str = SECRET, lost: Callable[[], None] = lambda: None) -> Link:
    """Connect as another worker does."""
    return await connect(address, secret=secret, announcement=b"it is me", lost=lost)


async def test_many_calls_share_one_connection() -> None:
    """Requests that are passed on to a worker would wait for each other, or get each other's answers."""
    others = asyncio.Event()

    async def answer(body: bytes) -> bytes:
        if body == b"slow":
            await others.wait()
        if body == b"last":
            others.set()
        return body * 2

    async with served(answer) as (_, address, greeted):
        link = await linked(address)
        slow = asyncio.create_task(link.call(b"slow", accept_within_s=2))
        for number in range(50):
            assert await link.call(b"%d" % number, accept_within_s=5) == b"%d" % number * 2
        await asyncio.sleep(2.1)  # longer than it may take to begin: it was begun, and is waited for
        assert await link.call(b"last", accept_within_s=5) == b"lastlast"
        assert await slow == b"slowslow"
        assert await link.call(b"x" * 3_000_000, accept_within_s=5) == b"x" * 6_000_000
        assert greeted == [b"it is me"]
        link.close()


async def test_who_does_not_know_the_secret_is_refused() -> None:
    """Anybody who reaches the port could do anything in anybody's name."""
    called = False

    async def answer(body: bytes) -> bytes:
        nonlocal called
        called = True
        return body

    async with served(answer) as (_, address, greeted):
        with pytest.raises(ConnectionError):
            await linked(address, secret="another secret")
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n" + b"\xff" * 100)
        assert len(await reader.read()) < 100  # the challenge, and then the end
        writer.close()
        assert greeted == []
        assert not called


async def test_who_only_pretends_to_be_a_worker_is_told_nothing() -> None:
    """Who takes the place of a worker in the network would be given what people write."""
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.encode(frames.CHALLENGE, body=os.urandom(frames.NONCE_BYTES)))
        heard.append(await reader.read(1000))
        # It cannot know more than what it was told itself: the proof of the other side, or its nonce.
        for echo in (heard[0][-96 - len(b"it is me") :][:32], b"", os.urandom(32)):
            writer.write(frames.encode(frames.WELCOME, body=echo))
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server:
        with pytest.raises(ConnectionError):
            await linked(f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}")
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert b"it is me" in heard[0]
    assert heard[1] == b""


@pytest.mark.parametrize("ahead_s", [-1e6, -5.0, 5.0, 1e6])
async def test_deadlines_hold_between_machines_whose_clocks_differ(ahead_s: float) -> None:
    """Nothing would be passed on between two machines; or be done twice, once late and once instead."""

    async def answer(body: bytes) -> bytes:
        return body

    async with served(answer, lambda: time.monotonic() + ahead_s) as (_, address, _):
        link = await linked(address)
        assert await link.call(b"in time", accept_within_s=5) == b"in time"
        with pytest.raises(NotAcceptedError):
            await link.call(b"late", accept_within_s=-0.001)
        link._ahead_s -= 30.0  # as if the other side's greeting had come so many seconds late
        with pytest.raises(NotAcceptedError):
            await link.call(b"refused", accept_within_s=5)
        assert await link.call(b"in time", accept_within_s=5) == b"in time"
        link.close()


async def test_a_call_that_comes_too_late_is_not_begun() -> None:
    """A worker that stood still would do a second time what another one has done meanwhile."""
    called = 0

    async def answer(body: bytes) -> bytes:
        nonlocal called
        called += 1
        return body

    async with served(answer) as (_, address, _):
        link = await linked(address)
        with pytest.raises(NotAcceptedError):
            await link.call(b"late", accept_within_s=-1.0)
        assert await link.call(b"in time", accept_within_s=5) == b"in time"
        assert called == 1
        link.close()


async def test_a_worker_that_dies_with_a_call_is_known_to_have_it_perhaps_done() -> None:
    """The caller would wait for ever, or believe that nothing was done."""
    begun = asyncio.Event()

    async def answer(body: bytes) -> bytes:
        begun.set()
        await asyncio.sleep(60)
        return body

    lost = asyncio.Event()
    async with asyncio.timeout(10):
        try:
            async with served(answer) as (server, address, _):
                link = await linked(address, lost=lost.set)
                call = asyncio.create_task(link.call(b"x", accept_within_s=5))
                await begun.wait()
                await server.stop(0)
                with pytest.raises(LinkLostError):
                    await call
                await lost.wait()
                with pytest.raises(NotAcceptedError):
                    await link.call(b"y", accept_within_s=5)
                raise KeyboardInterrupt  # ends the task that answers
        except* KeyboardInterrupt:
            pass


def test_only_the_rooms_of_a_worker_that_is_gone_move() -> None:
    """With each worker that comes or goes all rooms would grow cold."""
    names = ["one", "two", "three", "four"]
    keys = [f"!room{number}:example.org" for number in range(4000)]
    before = {key: ranked(ROOM, key, names) for key in keys}
    for name in names:
        assert 850 < sum(order[0] == name for order in before.values()) < 1150
    for key, order in before.items():
        rest = ranked(ROOM, key, [name for name in names if name != "two"])
        assert rest[0] == (order[1] if order[0] == "two" else order[0])


async def test_an_answer_that_never_comes_has_an_end() -> None:
    """A request would wait for ever for a worker that began it and stands still."""

    async def answer(body: bytes) -> bytes:
        await asyncio.sleep(30 if body == b"never" else 0)
        return body

    async with served(answer) as (_, address, _):
        link = await linked(address)
        with pytest.raises(LinkLostError):
            await link.call(b"never", accept_within_s=1, answer_within_s=0.1)
        assert await link.call(b"next", accept_within_s=5, answer_within_s=0.1) == b"next"


async def test_what_is_begun_late_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that a busy worker began at the last moment would be carried out by two workers."""
    # However seldom calls are confirmed: one that comes with little time left is, before it is begun.
    monkeypatch.setattr("ranvier.cluster.link._CONFIRM_AFTER_S", 30.0)
    monkeypatch.setattr("ranvier.cluster.link.HASTE_S", 2.0)

    async def answer(body: bytes) -> bytes:
        await asyncio.sleep(2.5)
        return body

    async with served(answer) as (_, address, _):
        link = await linked(address)
        assert await link.call(b"late", accept_within_s=1.9) == b"late"
        link.close()


async def test_each_call_that_takes_long_is_confirmed() -> None:
    """Of several requests that a slow worker has begun, all but one would be done by another one, too."""
    done = asyncio.Event()
    begun: list[bytes] = []

    async def answer(body: bytes) -> bytes:
        begun.append(body)
        await done.wait()
        return body

    async with served(answer) as (_, address, _):
        link = await linked(address)
        calls = []
        for number in range(4):
            calls.append(asyncio.create_task(link.call(b"%d" % number, accept_within_s=1.5)))
            await asyncio.sleep(0.015)
        await asyncio.sleep(1.7)  # longer than they may take to begin
        done.set()
        assert await asyncio.gather(*calls) == begun == [b"0", b"1", b"2", b"3"]
        link.close()


async def test_what_waits_too_long_for_its_turn_is_not_begun() -> None:
    """A busy worker would do what it read in time and came to too late, after another one has done it."""
    now, called = 0.0, 0

    async def answer(body: bytes) -> bytes:
        nonlocal called
        called += 1
        return body

    async with served(answer, lambda: time.monotonic() + now) as (server, address, _):
        link = await linked(address)
        start = server.start

        def start_late(work: Coroutine[Any, Any, None]) -> None:
            nonlocal now
            now += 30
            start(work)

        server.start = start_late  # type: ignore[method-assign]
        with pytest.raises(NotAcceptedError):
            await link.call(b"late", accept_within_s=20)
        assert called == 0
        server.start = start  # type: ignore[method-assign]
        assert await link.call(b"in time", accept_within_s=20) == b"in time"
        link.close()


def test_who_stood_still_reads_its_answers_before_it_gives_up() -> None:
    """A worker that stood still for a moment would do a second time what another one had done for it."""
    place: queue.SimpleQueue[str] = queue.SimpleQueue()
    done = threading.Event()
    called: list[bytes] = []

    async def answer(body: bytes) -> bytes:
        called.append(body)
        return body

    async def serve() -> None:
        async with served(answer) as (_, address, _):
            place.put(address)
            await asyncio.to_thread(done.wait, 30)

    async def call() -> None:
        link = await linked(place.get(timeout=30))
        busy, other = socket.socketpair()

        def stand_still() -> None:
            busy.recv(10)
            time.sleep(0.8)

        with busy, other:
            asyncio.get_running_loop().add_reader(busy, stand_still)
            for number in range(3):
                waiting = asyncio.create_task(link.call(b"%d" % number, accept_within_s=0.6))
                await asyncio.sleep(0)  # now it is sent
                other.send(b"x")
                assert await waiting == b"%d" % number
            asyncio.get_running_loop().remove_reader(busy)
        link.close()

    serving = threading.Thread(target=asyncio.run, args=(serve(),))
    serving.start()
    try:
        uvloop.run(call())  # as a worker runs it: timers go before what can be read
    finally:
        done.set()
        serving.join(30)
    assert called == [b"%d" % number for number in range(3)]


async def test_notices_arrive_and_what_is_unknown_is_passed_over() -> None:
    """Workers would not let each other go first; or one of the next release would break off all links."""
    heard: list[bytes] = []

    async def answer(body: bytes) -> bytes:
        return body

    async with served(answer, notice=heard.append) as (_, address, _):
        link = await linked(address)
        link.notify(b"one")
        assert link._transport is not None
        link._transport.write(frames.encode(200, 7, b"of the next release"))
        link.notify(b"two")
        assert await link.call(b"and on", accept_within_s=5) == b"and on"
        assert heard == [b"one", b"two"]
        link.close()


async def test_a_call_that_is_not_understood_was_not_begun() -> None:
    """Beside a worker of the next release each request that is passed on would break off all others."""

    async def answer(body: bytes) -> bytes:
        if body == b"new":
            raise NotAcceptedError
        await asyncio.sleep(0.05)
        return body

    async with served(answer) as (_, address, _):
        link = await linked(address)
        other = asyncio.create_task(link.call(b"known", accept_within_s=5))
        with pytest.raises(NotAcceptedError):
            await link.call(b"new", accept_within_s=5)
        assert await other == b"known"
        link.close()


async def test_who_gives_up_a_worker_that_takes_nothing_more_waits_for_no_answer() -> None:
    """What a worker had begun before it stood still would be waited for two minutes, or until it goes on."""

    async def answer(body: bytes) -> bytes:
        await asyncio.sleep(60)
        return body

    async with asyncio.timeout(30), served(answer) as (server, address, _):
        link = await linked(address)
        call = asyncio.create_task(link.call(b"begun", accept_within_s=5))
        while not any(it.accepted for it in link._calls.values()):
            await asyncio.sleep(0.01)
        for connection in server._connections:
            connection._transport.pause_reading()
        link.notify(b"x" * 16_000_000)
        link.retire()
        with pytest.raises(LinkLostError):
            await call


async def test_what_a_worker_that_is_given_up_has_not_begun_is_done_elsewhere() -> None:
    """Whoever sets a topic while a worker is taken for dead would be told that it may be set already."""
    done: list[bytes] = []

    async def answer(body: bytes) -> bytes:
        done.append(body)
        return body

    lost = asyncio.Event()
    async with asyncio.timeout(30), served(answer) as (server, address, _):
        link = await linked(address, lost=lost.set)
        (connection,) = server._connections
        connection._transport.pause_reading()  # as one that stands still
        call = asyncio.create_task(link.call(b"said", accept_within_s=0.3))
        await asyncio.sleep(0.05)
        link.retire()
        assert not link.is_open
        with pytest.raises(NotAcceptedError):
            link.begin(b"more", lambda _: None, accept_within_s=1)
        await asyncio.sleep(0.05)
        assert not call.done()  # it may yet begin
        with pytest.raises(NotAcceptedError):
            await call
        await lost.wait()
        connection._transport.resume_reading()
        await asyncio.sleep(0.05)
    assert done == []


async def test_a_worker_that_was_given_up_and_goes_on_in_time_has_its_answer_taken() -> None:
    """What it does just after it was taken for dead would be done twice."""
    others = asyncio.Event()

    async def answer(body: bytes) -> bytes:
        await others.wait()
        return body

    lost = asyncio.Event()
    async with asyncio.timeout(30), served(answer) as (server, address, _):
        link = await linked(address, lost=lost.set)
        (connection,) = server._connections
        connection._transport.pause_reading()
        call = asyncio.create_task(link.call(b"said", accept_within_s=5))
        await asyncio.sleep(0.05)
        link.retire()
        connection._transport.resume_reading()
        await asyncio.sleep(0.1)
        others.set()
        assert await call == b"said"
        await lost.wait()
