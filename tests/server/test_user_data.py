"""What users keep and count, as their devices see it through the whole server."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import orjson

from tests.server.http_client import HttpClient

FILTER = orjson.dumps({"room": {"timeline": {"unread_thread_notifications": True}}}).decode()


async def say(user: HttpClient, room_id: str, txn: str, **content: Any) -> str:
    """Send a message and give its id."""
    path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/{txn}"
    answer = await user.put(path, {"msgtype": "m.text", "body": "hello", **content})
    event_id: str = answer["event_id"]
    return event_id


async def sync(user: HttpClient, since: str | None = None, **query: Any) -> dict[str, Any]:
    """Sync by ``FILTER``."""
    answer: dict[str, Any] = await user.get(
        "/v3/sync", filter=FILTER, **({"since": since} if since else {}), **query
    )
    return answer


def account_data(answer: dict[str, Any]) -> dict[str, Any]:
    return {it["type"]: it["content"] for it in answer.get("account_data", {}).get("events", [])}


async def test_a_waiting_device_is_told_of_account_data(users: list[HttpClient]) -> None:
    """Settings changed on one device would reach the other only when something else happens."""
    alice = users[0]
    first = await sync(alice)
    assert account_data(first).keys() == {"m.push_rules"}
    waiting = asyncio.create_task(sync(alice, first["next_batch"], timeout=20_000))
    path = f"/v3/user/{quote(alice.user_id)}/account_data/org.example.theme"
    await alice.put(path, {"dark": True})
    second = await waiting
    assert account_data(second) == {"org.example.theme": {"dark": True}}
    await alice.put("/v3/pushrules/global/content/cake", {"pattern": "cake", "actions": ["notify"]})
    third = await sync(alice, second["next_batch"])
    assert account_data(third)["m.push_rules"]["global"]["content"][0]["rule_id"] == "cake"


async def test_counts_come_with_messages_and_go_with_receipts(users: list[HttpClient]) -> None:
    """The number on a room would be wrong, or stay on one device after reading on another."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await sync(bob))["next_batch"]
    root = await say(alice, room_id, "1")
    relation = {"rel_type": "m.thread", "event_id": root}
    mention = {"m.mentions": {"user_ids": [bob.user_id]}, "m.relates_to": relation}
    await say(alice, room_id, "2", **mention)
    told = await sync(bob, since)
    room = told["rooms"]["join"][room_id]
    assert room["unread_notifications"] == {"highlight_count": 0, "notification_count": 1}
    assert room["unread_thread_notifications"] == {root: {"highlight_count": 1, "notification_count": 1}}
    plain = await bob.get("/v3/sync")
    assert plain["rooms"]["join"][room_id]["unread_notifications"] == {
        "highlight_count": 1,
        "notification_count": 2,
    }
    listed = await bob.get("/v3/notifications", only="highlight")
    assert [(it["read"], it["event"]["content"]["m.relates_to"]) for it in listed["notifications"]] == [
        (False, relation)
    ]
    await bob.post(f"/v3/rooms/{quote(room_id)}/receipt/m.read.private/{quote(root)}", {"thread_id": "main"})
    room = (await sync(bob, told["next_batch"]))["rooms"]["join"][room_id]
    assert room["unread_notifications"] == {"highlight_count": 0, "notification_count": 0}
    assert room["unread_thread_notifications"] == {root: {"highlight_count": 1, "notification_count": 1}}
    listed = await bob.get("/v3/notifications", limit=1)
    assert listed["notifications"][0]["actions"][0] == "notify"
    listed = await bob.get("/v3/notifications", limit=1, **{"from": listed["next_token"]})
    assert [(it["read"], it["event"]["event_id"]) for it in listed["notifications"]] == [(True, root)]
    assert listed["notifications"][0]["room_id"] == room_id


async def test_a_new_name_reaches_everybody_in_the_room(users: list[HttpClient]) -> None:
    """Others would go on seeing the old name."""
    alice, bob, _ = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    since = (await sync(bob))["next_batch"]
    await alice.put(f"/v3/profile/{quote(alice.user_id)}/displayname", {"displayname": "Alice the First"})
    name = None
    while name != "Alice the First":
        answer = await sync(bob, since, timeout=20_000)
        since = answer["next_batch"]
        for event in answer["rooms"]["join"][room_id]["timeline"]["events"]:
            if event["type"] == "m.room.member" and event["state_key"] == alice.user_id:
                name = event["content"].get("displayname")
    profile = await bob.get(f"/v3/profile/{quote(alice.user_id)}")
    assert profile["displayname"] == "Alice the First"
    other_room = await alice.create_room()
    member = await alice.get(f"/v3/rooms/{quote(other_room)}/state/m.room.member/{quote(alice.user_id)}")
    assert member["displayname"] == "Alice the First"


async def test_who_is_ignored_is_not_heard(users: list[HttpClient]) -> None:
    """Somebody who is ignored would still be heard, or raise the count of a room."""
    alice, bob, carol = users
    room_id = await alice.create_room()
    await bob.join(room_id)
    await carol.join(room_id)
    path = f"/v3/user/{quote(bob.user_id)}/account_data/m.ignored_user_list"
    await bob.put(path, {"ignored_users": {carol.user_id: {}}})
    since = (await sync(bob))["next_batch"]
    await say(carol, room_id, "1")
    heard = await say(alice, room_id, "2")
    room = (await sync(bob, since))["rooms"]["join"][room_id]
    assert [it["event_id"] for it in room["timeline"]["events"]] == [heard]
    assert room["unread_notifications"]["notification_count"] == 1
