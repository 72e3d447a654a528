"""The last commit of a worker that is killed: it takes place, and nobody is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.cluster.figures import QUEUED, figures
from tests.cluster.log_lock import connection_of, log_locked

_WITHIN_S: Final = 30.0
_SENT_WITHIN_S: Final = 0.05
_MESSAGES: Final = """
SELECT e.event_id FROM events e JOIN rooms r USING (room_nid)
WHERE r.room_id = $1 AND e.type = 'm.room.message' AND e.pos IS NOT NULL
"""


@asynccontextmanager
async def last_commit(cluster: ClusterProcess, victim: str) -> AsyncIterator[None]:
    """Have a commit of a worker, which is to be killed meanwhile, wait in PostgreSQL.

    Then somebody sends again, by another worker, what that one did not answer; it must be there once.
    """
    elsewhere = next(name for name in sorted(await cluster.workers()) if name != victim)
    async with (
        HoppingClient([cluster.worker_socket(victim)]) as there,
        HoppingClient([cluster.worker_socket(elsewhere)]) as here,
        connection_of(cluster) as connection,
    ):
        await here.register()
        there.token = here.token
        rooms = [await here.create_room() for _ in range(2)]
        async with log_locked(connection), asyncio.timeout(_WITHIN_S):
            sending: list[asyncio.Task[Any]] = [
                asyncio.create_task(there.send(room_id, "last", txn_id="last")) for room_id in rooms
            ]
            # What waits for the next commit says that one is under way; these two may be in one.
            while not (await figures(cluster.worker_socket(victim)))[QUEUED]:
                path = f"/v3/user/{quote(here.user_id)}/account_data/last{len(sending)}"
                sending.append(asyncio.create_task(there.put(path)))
                await asyncio.sleep(_SENT_WITHIN_S)
            await asyncio.sleep(_SENT_WITHIN_S)
            yield
        for outcome in await asyncio.gather(*sending, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientError | ConnectionError), outcome
        for room_id in rooms:
            event_id = await here.send(room_id, "last", txn_id="last")
            found = [it["event_id"] for it in await connection.fetch(_MESSAGES, room_id)]
            assert found == [event_id], f"{found} are there, and the answer was {event_id}"
