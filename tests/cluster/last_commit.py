"""The last commit of a worker that is killed: it takes place, and nobody is told of it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import asyncpg

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import QUEUED, figures
from tests.cluster.log_lock import connection_of, log_locked
from tests.server.http_client import HttpClient

_WITHIN_S: Final = 30.0
_SENT_WITHIN_S: Final = 0.05
_IN_LINE_S: Final = 0.3
_TAKES_PLACE_WITHIN_S: Final = 5.0
_LOOK_S: Final = 0.02
_ROOMS: Final = 12
_PAUSE_S: Final = 0.05
_MESSAGES: Final = """
SELECT e.event_id FROM events e JOIN rooms r USING (room_nid)
WHERE r.room_id = $1 AND e.type = 'm.room.message' AND e.pos IS NOT NULL ORDER BY e.pos
"""


@dataclass
class LastCommit:
    """What a worker was sent: how many messages of each room it answered, and whether one more is there."""

    answered: dict[str, int] = field(default_factory=dict)
    took_place: bool = False


@asynccontextmanager
async def last_commit(cluster: ClusterProcess, victim: str) -> AsyncIterator[LastCommit]:
    """Have a commit of a worker, which is to be killed meanwhile, wait in PostgreSQL.

    Then somebody sends again, by another worker, what that one did not answer; it must be there once. Where
    others write at that worker, too, the commit may be theirs alone, and none of it is seen to take place.
    """
    elsewhere = next(name for name in sorted(await cluster.workers()) if name != victim)
    last, socket = LastCommit(), cluster.worker_socket(victim)
    async with (
        HoppingClient([socket]) as there,
        HoppingClient([cluster.worker_socket(elsewhere)]) as here,
        connection_of(cluster) as connection,
    ):
        await here.register()
        there.token = here.token
        rooms = await asyncio.gather(*(here.create_room() for _ in range(_ROOMS)))
        # All the time, so that some of it is in whichever commit is the last one.
        sending: list[asyncio.Task[Any]] = [
            asyncio.create_task(_keep_sending(socket, here, room_id, last)) for room_id in rooms
        ]
        async with asyncio.timeout(_WITHIN_S):
            while len(last.answered) < _ROOMS or not all(last.answered.values()):
                await asyncio.sleep(_LOOK_S)
        async with log_locked(connection), asyncio.timeout(_WITHIN_S):
            while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(_LOOK_S)
            # It may be another worker's; the victim stands in line with its own, and does not wait for long.
            while not (await figures(socket))[QUEUED]:
                path = f"/v3/user/{quote(here.user_id)}/account_data/last{len(sending)}"
                sending.append(asyncio.create_task(there.put(path)))
                await asyncio.sleep(_SENT_WITHIN_S)
            await asyncio.sleep(_IN_LINE_S)
            yield last
        for outcome in await asyncio.gather(*sending, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientError | ConnectionError), outcome
        last.took_place = await _took_place(connection, last)
        for room_id, answered in last.answered.items():
            event_id = await here.send(room_id, "last", txn_id=f"last {answered}")
            found = await _messages(connection, room_id)
            assert len(found) == answered + 1, f"{answered} were answered, and {len(found)} are there"
            assert found[-1] == event_id, f"{found[-1]} was committed, and the answer was {event_id}"


async def _keep_sending(socket: Path, sender: HttpClient, room_id: str, last: LastCommit) -> None:
    for number in itertools.count():
        last.answered[room_id] = number
        # Not all at once: who is answered by one commit would have nothing in the next.
        await asyncio.sleep(random.uniform(0.0, _PAUSE_S))
        async with HoppingClient([socket]) as client:  # by a connection of before it would be sent again
            client.token = sender.token
            await client.send(room_id, "last", txn_id=f"last {number}")


async def _took_place(connection: asyncpg.Connection, last: LastCommit) -> bool:
    """Wait for a while for a message that was not answered; tell whether one is there."""
    until = time.monotonic() + _TAKES_PLACE_WITHIN_S
    while time.monotonic() < until:
        for room_id, answered in last.answered.items():
            if len(await _messages(connection, room_id)) > answered:
                return True
        await asyncio.sleep(_LOOK_S)
    return False


async def _messages(connection: asyncpg.Connection, room_id: str) -> list[str]:
    return [it["event_id"] for it in await connection.fetch(_MESSAGES, room_id)]
