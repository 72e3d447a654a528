"""``/events`` and ``/initialSync``: old clients, and those that look into rooms before they join."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess


async def _refused(client: HttpClient, path: str, **query: Any) -> tuple[int, str | None]:
    with pytest.raises(Refused) as refused:
        await client.get(path, **query)
    return refused.value.status, refused.value.errcode


async def _readable_room(client: HttpClient) -> str:
    state = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    return await client.create_room(initial_state=[state])


def _bodies(answer: Any, key: str = "chunk") -> list[str]:
    return [event["content"]["body"] for event in answer[key] if event["type"] == "m.room.message"]


async def _until(client: HttpClient, since: str, type: str, **query: Any) -> tuple[Any, str]:
    """Follow the stream until there is an event of some type; give it and the token after it."""
    async with asyncio.timeout(20):
        while True:
            answer = await client.get("/v3/events", timeout=10_000, **{"from": since}, **query)
            since = answer["end"]
            for event in answer["chunk"]:
                if event["type"] == type:
                    return event, since


async def test_an_old_client_follows_its_rooms(users: list[HttpClient]) -> None:
    """A client of the first days would show nothing, or what is not its user's."""
    alice, bob, carol = users
    room_id = await alice.create_room(name="old")
    elsewhere = await carol.create_room()
    await bob.join(room_id)
    await alice.send(room_id, "before")
    await alice.put(f"/v3/user/{quote(alice.user_id)}/account_data/x.y", {"a": 1})
    await alice.put(f"/v3/user/{quote(alice.user_id)}/rooms/{quote(room_id)}/tags/u.tag", {"order": 0.5})
    await alice.put(f"/v3/presence/{quote(alice.user_id)}/status", {"presence": "online"})
    whole = await alice.get("/v3/initialSync", limit=2)
    (room,) = whole["rooms"]
    assert (room["room_id"], room["membership"], room["visibility"]) == (room_id, "join", "private")
    assert _bodies(room["messages"]) == ["before"]
    assert len(room["messages"]["chunk"]) == 2
    assert {e["type"] for e in room["state"]} >= {"m.room.create", "m.room.name", "m.room.member"}
    assert all(e["room_id"] == room_id for e in room["state"])
    assert {e["type"]: e["content"] for e in whole["account_data"]}["x.y"] == {"a": 1}
    assert [e["type"] for e in room["account_data"]] == ["m.tag"]
    assert alice.user_id in [e["sender"] for e in whole["presence"]]
    page = await alice.get(
        f"/v3/rooms/{quote(room_id)}/messages", dir="b", **{"from": room["messages"]["start"]}
    )
    told = [e["event_id"] for e in room["messages"]["chunk"]]
    assert page["chunk"]
    assert not {e["event_id"] for e in page["chunk"]} & set(told)

    waiting = asyncio.create_task(_until(alice, whole["end"], "m.room.message"))
    await carol.send(elsewhere, "not for alice")
    event_id = await bob.send(room_id, "hello")
    event, since = await waiting
    assert (event["event_id"], event["room_id"], event["content"]["body"]) == (event_id, room_id, "hello")
    await bob.put(
        f"/v3/rooms/{quote(room_id)}/typing/{quote(bob.user_id)}", {"typing": True, "timeout": 5000}
    )
    event, since = await _until(alice, since, "m.typing")
    assert (event["room_id"], event["content"]["user_ids"]) == (room_id, [bob.user_id])
    await bob.post(f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}")
    event, since = await _until(alice, since, "m.receipt")
    assert bob.user_id in event["content"][event_id]["m.read"]
    await alice.put(f"/v3/user/{quote(alice.user_id)}/account_data/x.y", {"a": 2})
    event, since = await _until(alice, since, "x.y")
    assert event["content"] == {"a": 2}
    nothing = await alice.get("/v3/events", timeout=0, **{"from": since})
    # (Somebody may have gone idle, or have stopped typing, on a slow machine.)
    assert not [e for e in nothing["chunk"] if e["type"] not in ("m.presence", "m.typing")]
    assert nothing["start"] == since


async def test_memberships_in_the_stream(users: list[HttpClient]) -> None:
    """An old client would not hear of an invitation, or go on reading a room that its user left."""
    alice, bob, _ = users
    since = (await bob.get("/v3/initialSync"))["end"]
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    await alice.send(room_id, "not yet for bob")
    event, since = await _until(bob, since, "m.room.member")
    assert (event["content"]["membership"], event["state_key"]) == ("invite", bob.user_id)
    (invited,) = (await bob.get("/v3/initialSync"))["rooms"]
    assert (invited["membership"], invited["invite"]["event_id"]) == ("invite", event["event_id"])
    assert "state" not in invited
    assert "messages" not in invited
    await bob.join(room_id)
    await alice.send(room_id, "for bob")
    await alice.post(f"/v3/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id, "reason": "r"})
    await alice.send(room_id, "no more for bob")
    chunk: list[Any] = []
    answer = await bob.get("/v3/events", **{"from": since})
    while answer["chunk"]:
        chunk += [e for e in answer["chunk"] if e.get("room_id") == room_id and "event_id" in e]
        answer = await bob.get("/v3/events", **{"from": answer["end"]})
        answer["chunk"] = [e for e in answer["chunk"] if e["type"] != "m.presence"]
    assert [e["content"].get("membership") or e["content"]["body"] for e in chunk] == [
        "join",
        "for bob",
        "leave",
    ]
    assert (await bob.get("/v3/initialSync"))["rooms"] == []
    (left,) = (await bob.get("/v3/initialSync", archived="true"))["rooms"]
    assert left["membership"] == "leave"
    assert _bodies(left["messages"]) == ["not yet for bob", "for bob"]
    one = await bob.get(f"/v3/rooms/{quote(room_id)}/initialSync")
    assert (one["membership"], _bodies(one["messages"])) == ("leave", ["not yet for bob", "for bob"])
    await bob.post(f"/v3/rooms/{quote(room_id)}/forget")
    assert (await bob.get("/v3/initialSync", archived="true"))["rooms"] == []


async def test_much_at_once_comes_in_pieces_and_whole(users: list[HttpClient]) -> None:
    """An old client that was away for long would miss messages, or get thousands in one answer."""
    alice, bob, _ = users
    rooms = [await alice.create_room() for _ in range(3)]
    for room_id in rooms:
        await bob.join(room_id)
    since = (await bob.get("/v3/initialSync"))["end"]
    said = []
    for number in range(240):
        said.append(str(number))
        await alice.send(rooms[number % 3], str(number))
    heard: list[str] = []
    for _ in range(4):
        answer = await bob.get("/v3/events", **{"from": since})
        assert len([e for e in answer["chunk"] if "event_id" in e]) <= 100
        heard += _bodies(answer)
        since = answer["end"]
    assert heard == said


async def test_looking_into_a_room(server: ServerProcess, users: list[HttpClient]) -> None:
    """A room could not be looked at before joining, or what is said later would not appear."""
    alice, bob, _ = users
    room_id = await _readable_room(alice)
    first = await alice.send(room_id, "first")
    async with HttpClient(server.url) as guest:
        registered = await guest.request("POST", "/v3/register", {}, kind="guest")
        guest.token = registered["access_token"]
        for peeker in (bob, guest):
            seen = await peeker.get(f"/v3/rooms/{quote(room_id)}/initialSync", limit=20)
            assert "membership" not in seen
            assert seen["visibility"] == "private"
            assert first in [e["event_id"] for e in seen["messages"]["chunk"]]
            assert "start" not in seen["messages"]
            since = seen["messages"]["end"]
            waiting = asyncio.create_task(_until(peeker, since, "m.room.message", room_id=room_id))
            while not (await alice.send(room_id, "later")) or not waiting.done():
                await asyncio.sleep(0.1)
            event, since = await waiting
            assert (event["content"]["body"], event["room_id"]) == ("later", room_id)
        assert await _refused(guest, "/v3/events") == (403, "M_GUEST_ACCESS_FORBIDDEN")
        now = (await bob.get("/v3/events", room_id=room_id))["end"]
        hidden = {"history_visibility": "shared"}
        await alice.put(f"/v3/rooms/{quote(room_id)}/state/m.room.history_visibility", hidden)
        await alice.send(room_id, "for members")
        for peeker in (bob, guest):
            query = {"room_id": room_id, "from": now}
            assert await _refused(peeker, "/v3/events", **query) == (403, "M_FORBIDDEN")
            path = f"/v3/rooms/{quote(room_id)}/initialSync"
            assert await _refused(peeker, path) == (403, "M_FORBIDDEN")


async def test_one_event_wherever_it_is(users: list[HttpClient]) -> None:
    """Somebody could read any event whose id they know, or not their own."""
    alice, bob, carol = users
    room_id = await alice.create_room()
    early = await alice.send(room_id, "early")
    await bob.join(room_id)
    assert (await alice.get(f"/v3/events/{quote(early)}"))["room_id"] == room_id
    assert (await bob.get(f"/v3/events/{quote(early)}"))["content"]["body"] == "early"
    assert await _refused(carol, f"/v3/events/{quote(early)}") == (404, "M_NOT_FOUND")
    assert await _refused(alice, "/v3/events/$nothing") == (404, "M_NOT_FOUND")


async def test_wrong_parameters(users: list[HttpClient]) -> None:
    """A client with a mistake in it would get a server error."""
    alice = users[0]
    assert await _refused(alice, "/v3/events", **{"from": "END"}) == (400, "M_INVALID_PARAM")
    assert await _refused(alice, "/v3/events", timeout="x") == (400, "M_INVALID_PARAM")
    assert await _refused(alice, "/v3/events", room_id="!no:where") == (403, "M_FORBIDDEN")
    assert await _refused(alice, "/v3/initialSync", limit="x") == (400, "M_INVALID_PARAM")
    assert await _refused(alice, "/v3/initialSync", archived="yes") == (400, "M_INVALID_PARAM")
    assert await _refused(alice, "/v3/rooms/!no:where/initialSync") == (403, "M_FORBIDDEN")
