"""Several workers that write into the same rooms: one knows of no other, the others disagree who has them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Final

from ranvier.wire.members import ROLES
from tests.chaos.alone import lone_worker
from tests.chaos.processes import listener_at
from tests.chaos.talk import Talk
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import overtaken
from tests.server.http_client import HttpClient

_WITHIN_S: Final = 60.0
_WRITERS_ALONE: Final = 4
_MESSAGES_ALONE: Final = 20
_LOOK_S: Final = 0.02
_MOVES: Final = 2
_APART_S: Final = 0.2
_ROLES_WITHOUT_ROOMS: Final = [role for role in ROLES if role != "client"]


async def written_by_two(cluster: ClusterProcess, talk: Talk, chance: random.Random) -> None:
    """Have a worker that knows of no other write where the others write, and place rooms at random meanwhile.

    It goes on until that one was overtaken, and one of the others, and rooms have been placed elsewhere.
    """
    sockets = [cluster.worker_socket(f"worker{number}") for number in range(1, cluster.count + 1)]
    async with lone_worker(cluster) as where, asyncio.timeout(_WITHIN_S):
        before = await overtaken(sockets)
        mixed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number, member in enumerate(talk.members[:_WRITERS_ALONE]):
                tasks.create_task(_write_alone(where, talk, number, member, mixed))
            await _place_at_random(cluster, chance)
            while not await overtaken([where]) or await overtaken(sockets) <= before:
                await asyncio.sleep(_LOOK_S)
            mixed.set()


async def _write_alone(
    where: Path, talk: Talk, writer: int, member: HttpClient, mixed: asyncio.Event
) -> None:
    """Write a number of messages, and more until all have been in each other's way."""
    first = len(talk.sent)
    number = 0
    async with HoppingClient([where]) as client:
        client.token = member.token
        while number < _MESSAGES_ALONE or not mixed.is_set():
            text = f"alone {first} {writer} {number}"
            room_id = talk.rooms[number % len(talk.rooms)]
            talk.sent[text] = room_id, member.user_id
            talk.answered[text] = room_id, await client.send(room_id, text, txn_id=text)
            number += 1


async def _place_at_random(cluster: ClusterProcess, chance: random.Random) -> None:
    """Take rooms from whoever has them, to some of the others, again and again; then let all have some.

    One worker after the other hears of it, so that they do not agree meanwhile.
    """
    try:
        for _ in range(_MOVES):
            members = await cluster.workers()
            others = [name for name in members if not members[name]["takes_rooms"]] or list(members)[1:]
            takers = chance.sample(others, chance.randint(1, len(others)))
            cluster.write_config(worker_roles=_ROLES_WITHOUT_ROOMS)
            await _tell(cluster, [name for name in members if name not in takers], chance)
            cluster.write_config()
            await _tell(cluster, takers, chance)
            placed = [name for name, it in (await cluster.workers()).items() if it["takes_rooms"]]
            assert placed, "nobody takes rooms"
            assert set(placed) <= set(takers), f"rooms are placed on {placed}, and may be on {takers}"
    finally:
        cluster.write_config()
    await _tell(cluster, list(await cluster.workers()), chance)


async def _tell(cluster: ClusterProcess, names: list[str], chance: random.Random) -> None:
    """Have workers read the configuration, one some time after the other; wait until its roles are known."""
    roles = json.loads((cluster.folder / "homeserver.yaml").read_text()).get("worker_roles", list(ROLES))
    for name in chance.sample(names, len(names)):
        pid = listener_at(cluster.worker_socket(name))
        assert pid, f"{name} is not there"
        os.kill(pid, signal.SIGHUP)
        await asyncio.sleep(chance.uniform(0.0, _APART_S))
    while any(list(it["roles"]) != roles for name, it in (await cluster.workers()).items() if name in names):
        await asyncio.sleep(_LOOK_S)
