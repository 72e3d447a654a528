"""Receipts, typing and presence wake those who wait, and reach them through ``/sync``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess


async def told(client: HttpClient, since: str, find: Callable[[Any], Any]) -> Any:
    """Sync on, waiting each time, until there is what the test looks for, and give it."""
    async with asyncio.timeout(20):
        while True:
            answer = await client.sync(since, timeout_ms=10_000)
            if (found := find(answer)) is not None:
                return found
            since = answer["next_batch"]


def ephemeral(room_id: str, event_type: str) -> Callable[[Any], Any]:
    """Look for an ephemeral event of a room."""

    def find(answer: Any) -> Any:
        room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
        events = room.get("ephemeral", {}).get("events", [])
        return next((event["content"] for event in events if event["type"] == event_type), None)

    return find


def presence_of(user_id: str, presence: str) -> Callable[[Any], Any]:
    """Look for somebody's presence."""

    def find(answer: Any) -> Any:
        for event in answer.get("presence", {}).get("events", []):
            if event["sender"] == user_id and event["content"]["presence"] == presence:
                return event["content"]
        return None

    return find


async def test_a_receipt_wakes_who_waits(users: list[HttpClient]) -> None:
    """One would see that a message was read only when something else happens."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    event_id = await alice.send(room_id, "read me")
    since = (await alice.sync())["next_batch"]
    waiting = asyncio.create_task(told(alice, since, ephemeral(room_id, "m.receipt")))
    await bob.post(f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}", {"thread_id": "main"})
    receipt = (await waiting)[event_id]["m.read"][bob.user_id]
    assert receipt["thread_id"] == "main"


async def test_a_receipt_clears_the_unread_count(users: list[HttpClient]) -> None:
    """A room would stay marked as unread after it was read."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    event_id = await bob.send(room_id, "read me")
    before = await alice.sync()
    assert before["rooms"]["join"][room_id]["unread_notifications"]["notification_count"] == 1
    body = {"m.fully_read": event_id, "m.read.private": event_id}
    await alice.post(f"/v3/rooms/{quote(room_id)}/read_markers", body)
    room = (await alice.sync(before["next_batch"]))["rooms"]["join"][room_id]
    assert room["unread_notifications"]["notification_count"] == 0
    marker = next(e for e in room["account_data"]["events"] if e["type"] == "m.fully_read")
    assert marker["content"] == {"event_id": event_id}


async def test_typing_wakes_who_waits_and_ends(users: list[HttpClient]) -> None:
    """One would see that somebody types when they are long done; or for ever."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await alice.sync())["next_batch"]
    waiting = asyncio.create_task(told(alice, since, ephemeral(room_id, "m.typing")))
    path = f"/v3/rooms/{quote(room_id)}/typing/{quote(bob.user_id)}"
    await bob.put(path, {"typing": True, "timeout": 300})
    assert await waiting == {"user_ids": [bob.user_id]}

    def ended(answer: Any) -> Any:
        content = ephemeral(room_id, "m.typing")(answer)
        return content if content == {"user_ids": []} else None

    assert await told(alice, since, ended) is not None


async def test_presence_wakes_who_shares_a_room(users: list[HttpClient]) -> None:
    """One would see that somebody came only when something else happens."""
    alice, bob, carol = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await alice.sync())["next_batch"]
    waiting = asyncio.create_task(told(alice, since, presence_of(bob.user_id, "online")))
    await bob.sync()
    assert (await waiting)["currently_active"] is True
    status = {"presence": "unavailable", "status_msg": "Lunch"}
    waiting = asyncio.create_task(told(alice, since, presence_of(bob.user_id, "unavailable")))
    await bob.put(f"/v3/presence/{quote(bob.user_id)}/status", status)
    assert (await waiting)["status_msg"] == "Lunch"
    answer = await carol.sync()
    assert presence_of(bob.user_id, "unavailable")(answer) is None


async def test_after_a_restart_clients_go_on(own_server: ServerProcess) -> None:
    """After a restart read marks would be lost, and people be typing and online who are gone."""
    await own_server.start()
    async with HttpClient(own_server.url) as alice, HttpClient(own_server.url) as bob:
        await alice.register("alice")
        await bob.register("bob")
        room_id = await alice.create_room()
        await bob.join(room_id)
        event_id = await alice.send(room_id, "read me")
        room_path = f"/v3/rooms/{quote(room_id)}"
        await bob.post(f"{room_path}/receipt/m.read/{quote(event_id)}")
        await bob.put(f"{room_path}/typing/{quote(bob.user_id)}", {"typing": True, "timeout": 100_000})
        await bob.put(
            f"/v3/presence/{quote(bob.user_id)}/status", {"presence": "online", "status_msg": "Here"}
        )
        since = (await alice.sync())["next_batch"]
        await own_server.restart()
        answer = await alice.sync(since)
        assert ephemeral(room_id, "m.typing")(answer) == {"user_ids": []}
        assert ephemeral(room_id, "m.receipt")(answer) is None
        again = await alice.sync()
        assert bob.user_id in ephemeral(room_id, "m.receipt")(again)[event_id]["m.read"]
        assert (await alice.get(f"/v3/presence/{quote(bob.user_id)}/status"))["status_msg"] == "Here"
        idle = await alice.sync(answer["next_batch"])
        assert ephemeral(room_id, "m.typing")(idle) is None
