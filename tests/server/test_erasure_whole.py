"""Erasure by the whole server, killed in the middle of it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess

PASSWORD = "a long password"


async def deactivate(user: HttpClient) -> None:
    """Let a user go and be erased."""
    with pytest.raises(Refused) as asked:
        await user.post("/v3/account/deactivate", {"erase": True})
    session = asked.value.body["session"]
    identifier = {"type": "m.id.user", "user": user.user_id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD, "session": session}
    await user.post("/v3/account/deactivate", {"erase": True, "auth": auth})


async def until_left(watcher: HttpClient, room_id: str, user_id: str) -> None:
    """Wait until somebody is no longer in a room."""
    async with asyncio.timeout(30):
        while user_id in (await watcher.get(f"/v3/rooms/{room_id}/joined_members"))["joined"]:
            await asyncio.sleep(0.05)


def said(answer: Any, room_id: str, sender: str) -> list[Any]:
    """Give the contents of somebody's messages in a sync answer."""
    events = answer["rooms"]["join"][room_id]["timeline"]["events"]
    return [e["content"] for e in events if e["sender"] == sender and e["type"] == "m.room.message"]


async def test_an_erasure_outlives_the_servers_end(own_server: ServerProcess) -> None:
    """A server that is killed while somebody leaves would show newcomers what they said, or keep them in."""
    server = own_server
    await server.start()
    async with AsyncExitStack() as stack:
        alice, bob, carol = [await stack.enter_async_context(HttpClient(server.url)) for _ in range(3)]
        for user, name in ((alice, "alice"), (bob, "bob"), (carol, "carol")):
            await user.register(name)
        room_id = await alice.create_room()
        await bob.join(room_id)
        await alice.put(f"/v3/profile/{alice.user_id}/displayname", {"displayname": "Alice L."})
        await alice.send(room_id, "secret")
        before = (await carol.sync())["next_batch"]
        await deactivate(alice)
        server.kill()
        await server.start()
        await until_left(bob, room_id, alice.user_id)
        await carol.join(room_id)
        for answer in (await carol.sync(), await carol.sync(before)):
            assert said(answer, room_id, alice.user_id) == [{}]
            assert "Alice L." not in str(answer)
        assert said(await bob.sync(), room_id, alice.user_id)[-1]["body"] == "secret"
        for asker in (bob, carol):
            with pytest.raises(Refused, match="M_NOT_FOUND"):
                await asker.get(f"/v3/profile/{alice.user_id}")
