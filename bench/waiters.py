"""Clients that wait for rooms in which nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.client import Client
from bench.servers.ranvier_workers import met_by
from bench.workers.load import make_user

_POLL_MS = 100_000


async def make_waiter(host: str, port: int, place: str, places: Sequence[str]) -> Client:
    """Register a user whom one of these workers meets, with a room of its own."""
    user = await make_user(host, port)
    while met_by(user.token or "", places) != place:
        user.connection.close()
        user = await make_user(host, port)
    await user.create_room("quiet")
    user.connection.close()
    return user


@asynccontextmanager
async def waiting(users: Sequence[Client]) -> AsyncIterator[None]:
    """Have each user poll inside the `async with` block, at the worker that meets it."""
    # A connection that begins with a sync is with the user's worker.
    clients = [user.twin() for user in users]
    since = [(await client.sync("timeout=0"))["next_batch"] for client in clients]
    polls = [asyncio.create_task(_poll(client, it)) for client, it in zip(clients, since, strict=True)]
    try:
        yield
        for poll in polls:
            if poll.done():
                poll.result()
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        for client in clients:
            client.connection.close()


async def _poll(client: Client, since: str) -> None:
    while True:
        since = (await client.sync(f"timeout={_POLL_MS}&since={since}"))["next_batch"]
