"""Many people who write into the same rooms at once, each by a worker of their own."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import overtaken
from tests.server.http_client import HttpClient

_PEOPLE = 24
_EACH = 12


async def _texts(client: HttpClient, room_id: str) -> list[str]:
    """Give all texts of a room, in order."""
    events: list[Any] = []
    start: dict[str, str] = {}
    while True:
        page = await client.get(f"/v3/rooms/{quote(room_id)}/messages", dir="f", limit=500, **start)
        events += page["chunk"]
        if "end" not in page:
            return [it["content"]["body"] for it in events if it["type"] == "m.room.message"]
        start = {"from": page["end"]}


async def test_everybody_can_write_into_a_room_at_once(own_cluster: ClusterProcess) -> None:
    """In a busy room some people's messages would be refused, as their worker is overtaken each time."""
    sockets = [own_cluster.worker_socket(f"worker{number}") for number in (1, 2, 3, 4)]
    async with AsyncExitStack() as stack:
        people = []
        for number in range(_PEOPLE):
            client = HoppingClient([sockets[number % len(sockets)]])
            stack.push_async_callback(client.close)
            people.append(await client.register())
        rooms = [await people[0].create_room() for _ in range(2)]
        await asyncio.gather(*(person.join(room_id) for person in people[1:] for room_id in rooms))
        sent = {
            room_id: [f"{n} {number}" for n, number in itertools.product(range(_PEOPLE), range(_EACH))]
            for room_id in rooms
        }

        async def talk(n: int) -> None:
            for number in range(_EACH):
                for room_id in rooms:
                    await people[n].send(room_id, f"{n} {number}")

        # Whoever begins at the same moment writes where they are: nobody has written elsewhere lately.
        await asyncio.sleep(1.5)
        before = await overtaken(sockets)
        await asyncio.gather(*(talk(n) for n in range(_PEOPLE)))
        assert await overtaken(sockets) > before, "the workers did not get into each other's way"
        for room_id in rooms:
            told = await _texts(people[0], room_id)
            assert sorted(told) == sorted(sent[room_id])
            for n in range(_PEOPLE):
                assert [it for it in told if it.startswith(f"{n} ")] == [f"{n} {k}" for k in range(_EACH)]
