"""A worker that dies and stays dead: others look after what it looked after."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.test_worker_life import running
from tests.postgres import private_folder

NOTHING = '{"room": {"rooms": []}, "presence": {"types": []}}'
"""A filter with which nobody's news end a long poll."""


@pytest.fixture
async def quick_cluster() -> AsyncIterator[ClusterProcess]:
    """Give a server of two workers on which who stops syncing is offline after two seconds."""
    with private_folder() as folder:
        process = ClusterProcess(folder, 2, {"presence": {"sync_online_timeout": "2s"}})
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


async def test_users_of_a_worker_that_stays_dead_are_offline(quick_cluster: ClusterProcess) -> None:
    """Whoever was connected to it would be online for ever; those who reconnect would come and go."""
    workers = [quick_cluster.worker_socket(name) for name in ("worker1", "worker2")]
    with running(quick_cluster, "extra") as extra:
        await extra.hear("READY=1")
        async with (
            HoppingClient(workers) as alice,
            HoppingClient([extra.socket]) as bob,
            HoppingClient([extra.socket]) as carol,
        ):
            for client in (alice, bob, carol):
                await client.register()
            room_id = await alice.create_room()
            waiting = []
            for client in (bob, carol):
                await client.join(room_id)
                since = (await client.sync())["next_batch"]
                waiting.append(asyncio.create_task(client.sync(since, 60_000, filter=NOTHING)))
            told, since = await presence(alice, None)
            while not told.keys() >= {bob.user_id, carol.user_id}:
                more, since = await presence(alice, since)
                told |= more
            await asyncio.sleep(6)  # so long it takes until it is written who is connected where
            os.kill(extra.process.pid, signal.SIGKILL)
            await asyncio.gather(*waiting, return_exceptions=True)
            await carol.close()
            carol.sockets = workers
            syncing = asyncio.create_task(keep_syncing(carol))
            try:
                seen: list[str] = []
                async with asyncio.timeout(60):
                    while told[bob.user_id] != "offline":
                        more, since = await presence(alice, since)
                        told |= more
                        seen += [more[carol.user_id]] if carol.user_id in more else []
                # Whoever took over has asked for both by now.
                told, _ = await presence(alice, None)
                assert (told.get(carol.user_id), told.get(bob.user_id)) == ("online", None)
                assert "offline" not in seen
            finally:
                syncing.cancel()
                await asyncio.gather(syncing, return_exceptions=True)


async def presence(client: HoppingClient, since: str | None) -> tuple[dict[str, str], str]:
    """Sync once and give what is told of presence, by user."""
    answer = await client.sync(since, 0 if since is None else 1000, set_presence="offline")
    events = answer.get("presence", {}).get("events", [])
    return {event["sender"]: event["content"]["presence"] for event in events}, answer["next_batch"]


async def keep_syncing(client: HoppingClient) -> None:
    """Sync as a client does, until cancelled."""
    since = None
    while True:
        since = (await client.sync(since, 10_000))["next_batch"]
