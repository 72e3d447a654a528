"""The user directory and old clients' event stream by a server of several workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.cluster.cluster_process import HoppingClient


async def _names(client: HoppingClient, term: str) -> list[Any]:
    found = await client.post("/v3/user_directory/search", {"search_term": term})
    return [it.get("display_name") for it in found["results"]]


async def test_every_worker_finds_the_same_people(hopper: Callable[[], HoppingClient]) -> None:
    """Somebody would be found on one worker and not on the next, or under the name of before."""
    alice, bob = hopper(), hopper()
    await alice.register("directory-alice")
    await bob.register("directory-bob")
    await bob.create_room()
    for name in ("Quentin Quill", "Quentin Quagga"):
        await bob.put(f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": name})
        async with asyncio.timeout(20):
            while await _names(alice, "quentin") != [name]:
                await asyncio.sleep(0.05)
        for _ in range(8):
            assert await _names(alice, "quent q") == [name]


async def test_an_old_client_hops(hopper: Callable[[], HoppingClient]) -> None:
    """The event stream of one worker would not go on where that of another stopped."""
    alice, bob = hopper(), hopper()
    await alice.register("stream-alice")
    await bob.register("stream-bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await bob.get("/v3/initialSync"))["end"]
    heard: list[str] = []
    for number in range(20):
        await alice.send(room_id, str(number))
        answer = await bob.get("/v3/events", timeout=10_000, **{"from": since})
        since = answer["end"]
        heard += [e["content"]["body"] for e in answer["chunk"] if e["type"] == "m.room.message"]
    async with asyncio.timeout(20):
        while len(heard) < 20:
            answer = await bob.get("/v3/events", timeout=10_000, **{"from": since})
            since = answer["end"]
            heard += [e["content"]["body"] for e in answer["chunk"] if e["type"] == "m.room.message"]
    assert heard == [str(number) for number in range(20)]
