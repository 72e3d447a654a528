"""Long polls, as clients keep them up: again and again over one connection."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

import orjson

from tests.server.http_client import HttpClient, bodies
from tests.server.process import ServerProcess


class Poller:
    """Poll over one connection with the same head each time, as clients do."""

    def __init__(self, server: ServerProcess, client: HttpClient) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._token = client.token
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self.since = ""

    async def begin(self, since: str) -> None:
        self.since = since
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    def ask(self, timeout_ms: int = 30_000, more: str = "") -> None:
        self._writer.write(
            f"GET /_matrix/client/v3/sync?timeout={timeout_ms}&since={self.since}{more} HTTP/1.1\r\n"
            f"host: here\r\nauthorization: Bearer {self._token}\r\n\r\n".encode()
        )

    async def answer(self) -> tuple[int, Any]:
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")
            )
            body = orjson.loads(await self._reader.readexactly(length))
        self.since = body.get("next_batch", self.since)
        return int(head.split(" ")[1]), body

    async def poll(self, **asked: Any) -> tuple[int, Any]:
        self.ask(**asked)
        return await self.answer()

    def close(self) -> None:
        self._writer.close()


async def test_each_message_comes_once(server: ServerProcess, users: list[HttpClient]) -> None:
    """Messages would be missing on somebody's screen, or come twice."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    poller = Poller(server, bob)
    await poller.begin((await bob.sync())["next_batch"])
    got: list[str] = []
    for number in range(10):
        poller.ask()
        if number % 2:
            await asyncio.sleep(0.05)  # else it is there before the server lets the poll wait
        await alice.send(room_id, str(number))
        status, answer = await poller.answer()
        assert status == 200
        got += bodies(answer, room_id)
    assert got == [str(number) for number in range(10)]
    assert answer["rooms"]["join"][room_id]["unread_notifications"]["notification_count"] == 10
    poller.close()


async def test_what_one_says_comes_back_with_its_transaction(
    server: ServerProcess, users: list[HttpClient]
) -> None:
    """One's own messages would be shown twice."""
    alice = users[0]
    room_id = await alice.create_room()
    poller = Poller(server, alice)
    await poller.begin((await alice.sync())["next_batch"])
    for number in range(2):
        poller.ask()
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/own{number}"
        await alice.put(path, {"msgtype": "m.text", "body": "mine"})
        _, answer = await poller.answer()
        (event,) = answer["rooms"]["join"][room_id]["timeline"]["events"]
        assert event["unsigned"]["transaction_id"] == f"own{number}"
    poller.close()


async def test_a_poll_ends_in_time(server: ServerProcess, users: list[HttpClient]) -> None:
    """A client would take the server for dead."""
    poller = Poller(server, users[0])
    await poller.begin((await users[0].sync())["next_batch"])
    for _ in range(2):
        begun = time.monotonic()
        status, answer = await poller.poll(timeout_ms=300)
        assert status == 200
        assert "rooms" not in answer
        assert 0.28 < time.monotonic() - begun < 5
    poller.close()


async def test_a_session_that_ended_polls_no_more(server: ServerProcess, users: list[HttpClient]) -> None:
    """Who has an old token would go on reading after its owner logged it out."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    poller = Poller(server, bob)
    await poller.begin((await bob.sync())["next_batch"])
    for number in range(2):
        poller.ask()
        await alice.send(room_id, str(number))
        assert (await poller.answer())[0] == 200
    await bob.post("/v3/logout", {})
    await alice.send(room_id, "secret")
    status, answer = await poller.poll()
    assert (status, answer["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    assert "secret" not in str(answer)
    poller.close()


async def test_broken_parameters_are_refused_each_time(
    server: ServerProcess, users: list[HttpClient]
) -> None:
    """A client with a mistake would wait for ever instead of being told."""
    poller = Poller(server, users[0])
    await poller.begin((await users[0].sync())["next_batch"])
    assert (await poller.poll(timeout_ms=1))[0] == 200
    for more in ("&set_presence=away", "&filter=%7B", "&full_state=perhaps"):
        status, answer = await poller.poll(more=more)
        assert (status, bool(answer["errcode"])) == (400, True)
    for broken in ("nonsense", "s1%5Fx"):
        poller.since = broken
        status, answer = await poller.poll()
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    poller.close()


async def test_typing_elsewhere_wakes_nobody_and_here_does(
    server: ServerProcess, users: list[HttpClient]
) -> None:
    """One would not see who types, or each poll would be answered for the sake of strangers."""
    alice, bob, carol = users
    room_id, other = await alice.create_room(), await carol.create_room()
    await bob.join(room_id)
    await bob.sync(set_presence="offline")
    poller = Poller(server, bob)
    await poller.begin((await bob.sync())["next_batch"])
    path = f"/v3/rooms/{quote(other)}/typing/{quote(carol.user_id)}"
    await carol.put(path, {"typing": True, "timeout": 5000})
    _, answer = await poller.poll(timeout_ms=200, more="&set_presence=offline")
    assert room_id not in answer.get("rooms", {}).get("join", {})
    poller.ask(more="&set_presence=offline")
    path = f"/v3/rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
    await alice.put(path, {"typing": True, "timeout": 5000})
    typists = None
    while typists is None:
        _, answer = await poller.answer()
        events = (
            answer.get("rooms", {}).get("join", {}).get(room_id, {}).get("ephemeral", {}).get("events", [])
        )
        typists = next(
            (event["content"]["user_ids"] for event in events if event["type"] == "m.typing"), None
        )
        if typists is None:
            poller.ask(more="&set_presence=offline")
    assert typists == [alice.user_id]
    poller.close()


async def test_polls_are_answered_when_the_server_stops(own_server: ServerProcess) -> None:
    """Clients would show an error each time that the server is restarted."""
    await own_server.start()
    async with HttpClient(own_server.url) as alice:
        await alice.register()
        since = (await alice.sync())["next_batch"]
        pollers = [Poller(own_server, alice) for _ in range(20)]
        for poller in pollers:
            await poller.begin(since)
            assert (await poller.poll(timeout_ms=1))[0] == 200
            poller.ask()
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(own_server.stop())
        for poller in pollers:
            status, answer = await poller.answer()
            assert (status, bool(answer["next_batch"])) == (200, True)
        await stopping
