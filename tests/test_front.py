"""To whom the front hands a connection."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from ranvier.cluster.placement import READ, USER, ranked
from ranvier.http.listeners import UnixAddress
from ranvier.processes import front_protocol
from ranvier.processes.front import _LOOK_S, Front, FrontListener
from ranvier.processes.front_end import Adopting, FrontEnd
from ranvier.processes.front_protocol import Connection, Ready, Refused, Taken, TakesRooms
from ranvier.processes.offers import Offers, refuse, take
from tests.http.edge import serving
from tests.open_files import no_more_files

WRITES = b"PUT /_matrix/client/v3/rooms/!r%d:test/send/m/1 HTTP/1.1\r\n"
READS = b"GET /_matrix/client/v3/rooms/!r%d:test/messages HTTP/1.1\r\n"
SYNCS = b"GET /_matrix/client/v3/sync HTTP/1.1\r\nAuthorization: Bearer token%d\r\n"


class Worker:
    """The end of a worker, which says that it is ready and then does what a test says."""

    def __init__(self, front: Front, name: str) -> None:
        ours, self._sock = front_protocol.make_pair()
        self._sock.setblocking(False)
        front.add_worker(name, ours)
        self.taken = 0
        self.heads: list[bytes] = []
        self.say(Ready())

    def say(self, message: front_protocol.Message) -> None:
        assert front_protocol.send(self._sock, message)

    def hear(self, *, is_full: bool = False) -> int:
        """Take what is offered, or refuse it; give how much that was."""
        count = 0
        for message, passed in front_protocol.all_received(self._sock):
            if isinstance(message, Connection) and passed is not None:
                count += 1
                if is_full:
                    refuse(passed)
                    self.say(Refused(message.id))
                elif (sock := take(passed)) is not None:
                    self.say(Taken(message.id))
                    self.taken += 1
                    self.heads.append(sock.recv(4096))
                    sock.close()
        return count

    def die(self) -> None:
        self._sock.close()


@dataclass
class Kept:
    """What is kept of a connection that was offered."""

    sock: socket.socket

    def let_go(self) -> None:
        """Do nothing: the test closes it."""


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Give a front that accepts."""
    front = Front([FrontListener("one", [UnixAddress(tmp_path / "socket")], tls=False)])
    front.open()
    front.serve()
    running = asyncio.create_task(front.run())
    yield front
    running.cancel()
    front.close()


@asynccontextmanager
async def asking(front: Front, *heads: bytes) -> AsyncIterator[None]:
    """Have clients that connect and send the beginning of a request each."""
    (address,) = front.addresses
    assert isinstance(address, UnixAddress)
    clients = []
    for head in heads:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(address.path))
        client.sendall(head + b"\r\n")
        clients.append(client)
    await asyncio.sleep(0.1)
    yield
    for client in clients:
        client.close()


async def test_who_writes_is_given_to_those_that_have_rooms(front: Front) -> None:
    """Each new connection of a client that writes would go by way of a worker that gives it away again."""
    one, two = Worker(front, "one"), Worker(front, "two")
    two.say(TakesRooms(False))
    await front.wait_ready(["one", "two"])
    async with asking(front, *(WRITES % number for number in range(20))):
        assert (one.hear(), two.hear()) == (20, 0)
    async with asking(front, *(READS % number for number in range(20))):
        assert one.hear() > 0 < two.hear(), "what is read is shared out"
    one.say(TakesRooms(False))
    two.say(TakesRooms(True))
    await asyncio.sleep(0.05)
    async with asking(front, *(WRITES % number for number in range(20))):
        assert (one.hear(), two.hear()) == (0, 20)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_user_is_always_given_to_one_worker_and_a_room_is_too(front: Front) -> None:
    """What is in memory for one user's syncs would be so on all workers, and each would read it anew."""
    workers = {name: Worker(front, name) for name in ("one", "two")}
    await front.wait_ready(workers)
    users = {number: ranked(USER, sha256(b"token%d" % number).hexdigest(), workers)[0] for number in range(8)}
    rooms = {number: ranked(READ, f"!r{number}:test", workers)[0] for number in range(8)}
    for head, placed in ((SYNCS, users), (READS, rooms)):
        async with asking(front, *(head % number for number in [*placed] * 3)):
            for name, worker in workers.items():
                worker.hear()
                asked = Counter(int(re.findall(rb"(?:token|!r)(\d+)", it)[0]) for it in worker.heads)
                assert asked == {number: 3 for number in placed if placed[number] == name}
                worker.heads.clear()


async def test_what_a_worker_did_not_take_before_it_died_goes_to_another(front: Front) -> None:
    """Whoever connected just before a worker ended would find the connection closed and nothing done."""
    one, two = Worker(front, "one"), Worker(front, "two")
    two.say(TakesRooms(False))
    await front.wait_ready(["one", "two"])
    async with asking(front, *(WRITES % number for number in range(5))):
        await until(lambda: len(front._workers["one"].given) == 5)
        one.die()
        await until(lambda: two.hear() and two.taken == 5)


async def test_what_a_worker_that_stands_still_does_not_take_goes_to_another(front: Front) -> None:
    """New clients would wait for a worker that hangs, as long as it does; or two would serve one of them."""
    one, two = Worker(front, "one"), Worker(front, "two")
    two.say(TakesRooms(False))
    await front.wait_ready(["one", "two"])
    async with asking(front, *(WRITES % number for number in range(5))):
        await until(lambda: two.hear() and two.taken == 5)
        assert one.hear() == 5
        assert one.taken == 0
    async with asking(front, WRITES % 1):
        assert (one.hear(), two.hear()) == (0, 1), "for a while it is asked last"


async def test_a_connection_that_a_worker_has_no_room_for_goes_to_another(front: Front) -> None:
    """A client would be told that the server is full, while most of it is empty."""
    one, two = Worker(front, "one"), Worker(front, "two")
    two.say(TakesRooms(False))
    await front.wait_ready(["one", "two"])
    async with asking(front, *(WRITES % number for number in range(5))):
        assert one.hear(is_full=True) == 5
        await asyncio.sleep(0.05)
        assert (one.hear(), two.hear()) == (0, 5)


async def test_a_connection_waits_while_all_workers_are_full(front: Front) -> None:
    """The front would offer it to and fro without end, and use all of a core for it; or it would be lost."""
    one, two = Worker(front, "one"), Worker(front, "two")
    await front.wait_ready(["one", "two"])
    offers = 0
    begun = time.monotonic()
    async with asking(front, WRITES % 1):
        for _ in range(20):
            offers += one.hear(is_full=True) + two.hear(is_full=True)
            await asyncio.sleep(0.02)
        looks = 1 + (time.monotonic() - begun) / _LOOK_S
        assert 2 <= offers <= 2 * looks, "each look offers it to each of the two once"
        async with asyncio.timeout(5):
            while not one.taken + two.taken:
                one.hear()
                two.hear()
                await asyncio.sleep(0.02)


async def test_a_worker_leaves_a_connection_of_a_listener_that_it_does_not_have() -> None:
    """A public port would get what another listener has, or a client would wait for an answer for ever."""
    ours, theirs = front_protocol.make_pair()
    theirs.setblocking(False)
    client, accepted = socket.socketpair()
    async with serving() as edge, asyncio.TaskGroup() as tasks:
        adopting = Adopting({"client 8008": edge.listener}, tasks)
        FrontEnd(theirs, adopting, on_orphaned=lambda: None).start()
        offers = Offers[Kept](ours)
        assert offers.make(Kept(accepted), accepted.fileno(), "console")
        assert offers.make(Kept(accepted), accepted.fileno(), "client 8008")
        answers: list[front_protocol.Message | None] = []
        async with asyncio.timeout(5):
            while len(answers) < 3:
                answers += [message for message, _ in front_protocol.all_received(ours)]
                await asyncio.sleep(0.01)
        assert [type(answer) for answer in answers] == [Ready, Refused, Taken]
        for sock in (client, accepted, ours):
            sock.close()


async def test_at_its_limit_of_files_the_front_waits(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """It would use all of a core and fill the log just when the server has the most to do."""
    one = Worker(front, "one")
    await front.wait_ready(["one"])
    with socket.socket(socket.AF_UNIX) as client:
        (address,) = front.addresses
        assert isinstance(address, UnixAddress)
        with no_more_files():
            client.connect(str(address.path))
            client.sendall(WRITES % 1 + b"\r\n")
            await asyncio.sleep(1.2)
        assert [record.message for record in caplog.records if "accept" in record.message] == [
            "Connections cannot be accepted now: [Errno 24] Too many open files"
        ]
        async with asyncio.timeout(10):
            while not one.hear():
                await asyncio.sleep(0.02)


async def test_those_who_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    """A few clients that connect and wait would keep all others from the server."""
    front = Front([FrontListener("one", [UnixAddress(tmp_path / "socket")], tls=False)], max_waiting=5)
    front.open()
    front.serve()
    one = Worker(front, "one")
    await front.wait_ready(["one"])
    async with AsyncExitStack() as silent:
        for _ in range(8):
            client = silent.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(tmp_path / "socket"))
        await asyncio.sleep(0.1)
        assert len(front._unread) == 5
        async with asking(front, WRITES % 1):
            assert one.hear() == 1
    front.close()


async def test_words_of_another_version_are_left_out(front: Front) -> None:
    """A front would hear nothing more of a worker that is newer than itself."""
    worker = Worker(front, "one")
    worker._sock.send(front_protocol.encode({"type": "of tomorrow", "what": 1}))
    worker.say(TakesRooms(True))
    await front.wait_ready(["one"])
    async with asking(front, WRITES % 1):
        assert worker.hear() == 1
