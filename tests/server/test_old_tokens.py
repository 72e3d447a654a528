"""What clients with old tokens are told when the log's rows from then are removed."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import asyncpg

from ranvier.log.pruning import LOG_KEPT_ROWS
from ranvier.processes.postgres import running_dsn
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess


async def test_an_old_token_is_answered_as_before(own_server: ServerProcess) -> None:
    """Who was away for a week would miss read receipts, keys, settings or messages; or be told of nothing."""
    await own_server.start()
    async with HttpClient(own_server.url) as alice, HttpClient(own_server.url) as bob:
        await alice.register()
        await bob.register()
        room_id = await alice.create_room()
        await bob.join(room_id)
        since = (await bob.sync())["next_batch"]
        await happen(alice, bob, room_id)
        before = shown(await bob.sync(since), room_id)
        await age_log(own_server)
        after = shown(await bob.sync(since), room_id)
        assert after == before
        assert all(after.values()), after
        # What is new comes on top, and from a token of today it is all there is.
        await alice.put(f"/v3/rooms/{quote(room_id)}/send/m.room.message/new", {"body": "new"})
        assert len(shown(await bob.sync(since), room_id)["timeline"]) == len(before["timeline"]) + 1
        whole = await bob.sync()
        assert shown(whole, room_id)["receipts"] == before["receipts"]
        assert shown(whole, room_id)["account_data"]["org.example.setting"] == {"on": True}


async def happen(alice: HttpClient, bob: HttpClient, room_id: str) -> None:
    """Let one thing of each kind happen of which Bob is told."""
    room = f"/v3/rooms/{quote(room_id)}"
    event_id = await alice.send(room_id, "hello")
    await alice.post(f"{room}/receipt/m.read/{quote(event_id)}", {})
    await bob.put(f"/v3/user/{quote(bob.user_id)}/account_data/org.example.setting", {"on": True})
    await bob.put(f"/v3/user/{quote(bob.user_id)}/rooms/{quote(room_id)}/tags/m.favourite", {})
    keys = {"user_id": alice.user_id, "device_id": alice.device_id, "algorithms": [], "keys": {}}
    await alice.post("/v3/keys/upload", {"device_keys": {**keys, "signatures": {}}})
    message = {"messages": {bob.user_id: {"*": {"a": 1}}}}
    await alice.put("/v3/sendToDevice/org.example.key/1", message)


def shown(answer: Any, room_id: str) -> dict[str, Any]:
    """Give what a sync tells of these things."""
    room = answer["rooms"]["join"][room_id]
    return {
        "timeline": [event["event_id"] for event in room["timeline"]["events"]],
        "receipts": [it for it in room["ephemeral"]["events"] if it["type"] == "m.receipt"],
        "tags": [it for it in room["account_data"]["events"] if it["type"] == "m.tag"],
        "account_data": {it["type"]: it["content"] for it in answer["account_data"]["events"]},
        "to_device": answer["to_device"]["events"],
        "changed": answer.get("device_lists", {}).get("changed"),
    }


async def age_log(server: ServerProcess) -> None:
    """Restart the server when all that is in its log has become too old, and wait until it is removed."""
    connection = await asyncpg.connect(running_dsn(server.folder / "data"))
    head = await connection.fetchval(
        "INSERT INTO log_marks SELECT pos, 'epoch' FROM log_head "
        "ON CONFLICT (pos) DO UPDATE SET ts = 'epoch' RETURNING pos"
    )
    # The last rows are kept however old they are: these are the last no more.
    await connection.execute("UPDATE log_head SET pos = pos + $1", LOG_KEPT_ROWS)
    await connection.close()
    await server.restart()
    connection = await asyncpg.connect(running_dsn(server.folder / "data"))
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT pos FROM log_pruned") < head:
                await asyncio.sleep(0.05)
        assert await connection.fetchval("SELECT count(*) FROM log WHERE pos <= $1", head) == 0
    finally:
        await connection.close()
