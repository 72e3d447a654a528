"""Making rooms and moving between them, as clients see it through the whole server."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess


async def sync_rooms(user: HttpClient, since: str | None = None) -> tuple[dict[str, Any], str]:
    """Give the rooms of a sync, and its token."""
    answer = await user.get("/v3/sync", **({"since": since} if since else {}))
    return answer.get("rooms", {}), answer["next_batch"]


async def test_an_invitation_is_seen_accepted_and_left(users: list[HttpClient]) -> None:
    """Who is invited would not hear of it, or not be able to name the room."""
    alice, bob, _ = users
    _, alice_since = await sync_rooms(alice)
    _, bob_since = await sync_rooms(bob)
    made = await alice.post(
        "/v3/createRoom", {"name": "Den", "invite": [bob.user_id], "is_direct": True, "topic": "talk"}
    )
    room_id = made["room_id"]
    rooms, alice_since = await sync_rooms(alice, alice_since)
    assert room_id in rooms["join"], "who makes a room sees it in the next sync"
    rooms, bob_since = await sync_rooms(bob, bob_since)
    state = {(e["type"], e["state_key"]): e for e in rooms["invite"][room_id]["invite_state"]["events"]}
    assert state["m.room.create", ""]["content"]["room_version"] == "12"
    assert state["m.room.name", ""]["content"]["name"] == "Den"
    assert state["m.room.member", bob.user_id]["content"]["is_direct"] is True
    assert state["m.room.member", alice.user_id]["content"]["membership"] == "join"

    await bob.post(f"/v3/join/{quote(room_id)}")
    rooms, bob_since = await sync_rooms(bob, bob_since)
    assert room_id in rooms["join"]
    rooms, _ = await sync_rooms(alice, alice_since)
    joined = rooms["join"][room_id]["timeline"]["events"][-1]
    assert (joined["type"], joined["state_key"]) == ("m.room.member", bob.user_id)

    await bob.post(f"/v3/rooms/{quote(room_id)}/leave")
    rooms, _ = await sync_rooms(bob, bob_since)
    assert room_id in rooms["leave"]
    await bob.post(f"/v3/rooms/{quote(room_id)}/forget")
    assert (await bob.get("/v3/joined_rooms"))["joined_rooms"] == []


async def test_a_room_is_found_by_its_name(users: list[HttpClient]) -> None:
    """People could not find a public room, or not enter what they found."""
    alice, bob, _ = users
    name = f"pub-{alice.user_id.partition(':')[0][1:]}"
    made = await alice.post("/v3/createRoom", {"preset": "public_chat", "room_alias_name": name})
    alias = f"#{name}:{alice.user_id.partition(':')[2]}"
    assert (await bob.get(f"/v3/directory/room/{quote(alias)}"))["room_id"] == made["room_id"]
    assert (await bob.get(f"/v1/room_summary/{quote(alias)}"))["join_rule"] == "public"
    assert (await bob.post(f"/v3/join/{quote(alias)}"))["room_id"] == made["room_id"]
    upgraded = await alice.post(f"/v3/rooms/{quote(made['room_id'])}/upgrade", {"new_version": "12"})
    found = await bob.get(f"/v3/directory/room/{quote(alias)}")
    assert found["room_id"] == upgraded["replacement_room"]


async def test_settings_go_along_to_the_new_room(users: list[HttpClient]) -> None:
    """After an upgrade a muted room would ring again, and a favourite or a direct chat would be lost."""
    alice, bob, carol = users
    old = await alice.create_room(room_version="11")
    await bob.join(old)
    for user in (alice, bob):
        mine = f"/v3/user/{quote(user.user_id)}"
        await user.put(f"{mine}/rooms/{quote(old)}/tags/m.favourite", {"order": 0.25})
        await user.put(f"/v3/pushrules/global/room/{quote(old)}", {"actions": []})
        mute = {"actions": [], "conditions": [{"kind": "event_match", "key": "room_id", "pattern": old}]}
        await user.put(f"/v3/pushrules/global/override/{quote(old)}", mute)
        await user.put(f"{mine}/account_data/m.direct", {"@x:y": [old], "@z:y": ["!a:b"]})
    new = (await alice.post(f"/v3/rooms/{quote(old)}/upgrade", {"new_version": "12"}))["replacement_room"]
    await bob.join(new)
    for user in (alice, bob):
        mine = f"/v3/user/{quote(user.user_id)}"
        assert (await user.get(f"{mine}/rooms/{quote(new)}/tags"))["tags"] == {"m.favourite": {"order": 0.25}}
        assert (await user.get(f"{mine}/account_data/m.direct")) == {"@x:y": [old, new], "@z:y": ["!a:b"]}
        rules = await user.get("/v3/pushrules/global/")
        assert [rule["rule_id"] for rule in rules["room"]] == [old, new]
        muted = [rule for rule in rules["override"] if rule["rule_id"] == new]
        assert [rule["conditions"][0]["pattern"] for rule in muted] == [new]
    # what is taken away afterwards stays away, and nobody else gets anything
    tag = f"/v3/user/{quote(bob.user_id)}/rooms/{quote(new)}/tags/m.favourite"
    await bob.request("DELETE", tag)
    await bob.join(new)
    assert (await bob.get(tag.removesuffix("/m.favourite")))["tags"] == {}
    await carol.join(new)
    assert (await carol.get(f"/v3/user/{quote(carol.user_id)}/rooms/{quote(new)}/tags"))["tags"] == {}
    # a room that only claims to replace another one gets nothing
    predecessor = {"predecessor": {"room_id": old, "event_id": "$x"}}
    false = await carol.create_room(creation_content=predecessor, room_version="11")
    await alice.join(false)
    assert (await alice.get(f"/v3/user/{quote(alice.user_id)}/rooms/{quote(false)}/tags"))["tags"] == {}


async def test_blocked_invitations_are_not_told(users: list[HttpClient]) -> None:
    """Who wants no invitations would still be shown those that came before."""
    alice, bob, _ = users
    _, since = await sync_rooms(bob)
    before = (await bob.get("/v3/events"))["end"]
    room_id = await alice.create_room(preset="private_chat", invite=[bob.user_id])
    place = f"/v3/user/{quote(bob.user_id)}/account_data"
    await bob.put(f"{place}/m.invite_permission_config", {"default_action": "block"})
    for token in (None, since):
        assert "invite" not in (await sync_rooms(bob, token))[0]
    assert (await bob.get("/v3/initialSync"))["rooms"] == []
    chunk = (await bob.get("/v3/events", **{"from": before}))["chunk"]
    assert not [event for event in chunk if event.get("room_id") == room_id]
    await bob.put(f"{place}/m.invite_permission_config", {})
    assert room_id in (await sync_rooms(bob))[0]["invite"]
    # and likewise of those whom one ignores
    await bob.put(f"{place}/m.ignored_user_list", {"ignored_users": {alice.user_id: {}}})
    assert "invite" not in (await sync_rooms(bob))[0]
    assert (await bob.get("/v3/initialSync"))["rooms"] == []
    chunk = (await bob.get("/v3/events", **{"from": before}))["chunk"]
    assert not [event for event in chunk if event.get("room_id") == room_id]


async def test_guests_leave_a_room_that_closes(server: ServerProcess, users: list[HttpClient]) -> None:
    """Strangers without an account would go on reading in a room that wants them no longer."""
    alice, bob, _ = users
    room_id = await alice.create_room(preset="public_chat")
    await alice.put(f"/v3/rooms/{quote(room_id)}/state/m.room.guest_access", {"guest_access": "can_join"})
    await bob.join(room_id)
    async with HttpClient(server.url) as guest:
        registered = await guest.request("POST", "/v3/register", {}, kind="guest")
        guest.token = registered["access_token"]
        await guest.join(room_id)
        closed = {"guest_access": "forbidden"}
        await alice.put(f"/v3/rooms/{quote(room_id)}/state/m.room.guest_access", closed)
        async with asyncio.timeout(10):
            while (await guest.get("/v3/joined_rooms"))["joined_rooms"]:
                await asyncio.sleep(0.05)
    left = await alice.get(f"/v3/rooms/{quote(room_id)}/joined_members")
    assert set(left["joined"]) == {alice.user_id, bob.user_id}
