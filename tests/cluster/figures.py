"""What single workers tell Prometheus, each asked by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import aiohttp

OVERTAKEN = "ranvier_log_overtaken_writes_total"
QUEUED = "ranvier_log_queued_writes"
IN_FLIGHT = "ranvier_http_requests_in_flight"
SYNC_WAITING = "ranvier_sync_waiting"


async def figures(socket: Path) -> dict[str, float]:
    """Give the figures without labels of the worker with this private socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.get("http://localhost/_ranvier/metrics", headers={"X-Ranvier-Console": "1"}) as response,
    ):
        assert response.status == 200
        lines = (await response.text()).splitlines()
    pairs = [line.split(" ") for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in pairs}


async def overtaken(sockets: Iterable[Path]) -> float:
    """Give how many writes these workers computed again, as somebody else wrote to the room first."""
    return sum(it[OVERTAKEN] for it in await asyncio.gather(*map(figures, sockets)))
