"""What only the form of several workers has: idle workers, forwarding, a worker that dies, one that comes."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from time import perf_counter

from bench.client import Client, WrongAnswerError
from bench.measure import percentile
from bench.servers.base import HOST
from bench.servers.ranvier_workers import RanvierWorkers, met_by
from bench.workers.load import AT_ONCE, Rooms, make_rooms, make_user, process_cpu_ms, send_for

_GIVE_UP_S = 30.0
_PUT_OFF_S = 0.5  # a worker on which nobody waits follows somewhat later


@dataclass(frozen=True)
class IdleCost:
    """What a worker without requests spends on following others' events."""

    wanted_per_s: float
    per_s: float
    ms_per_event: float
    percent_of_core: float


@dataclass(frozen=True)
class Sent:
    """How long a message takes (p50, ms), by how its connection stands to the worker that has the room.

    ``forwarded``: it is at another worker and stays there, since its client polls on it. ``settled``: it was
    at another worker, and has moved. ``moving``: it is at another worker and moves with this message.
    ``local_spaced`` and ``away_spaced`` are the first two where a message is sent ten times a second.
    """

    local: float
    forwarded: float
    settled: float
    moving: float
    local_spaced: float
    away_spaced: float


@dataclass(frozen=True)
class WorkerFigures:
    """The figures of one server in its worker form; None where a scenario does not apply to it."""

    idle: list[IdleCost]
    sent: Sent | None = None
    failover_s: float | None = None
    slowest_before_ms: float | None = None
    slowest_while_adding_ms: float | None = None


async def idle_costs(rooms: Rooms, idle_pid: int, seconds: float) -> list[IdleCost]:
    """Measure a worker that gets no request: at 40 events/s, and as near to 1 000 as the machine comes.

    What it uses when nothing happens at all is measured first and taken off.
    """
    await send_for(rooms, min(1.0, seconds), 20)
    await asyncio.sleep(1)
    before, begun = process_cpu_ms(idle_pid), perf_counter()
    await asyncio.sleep(seconds)
    at_rest = (process_cpu_ms(idle_pid) - before) / (perf_counter() - begun)
    costs = []
    for wanted in (40.0, 1000.0):
        before, begun = process_cpu_ms(idle_pid), perf_counter()
        sent = len((await send_for(rooms, seconds, wanted)).latencies_ms)
        await asyncio.sleep(_PUT_OFF_S)
        took = perf_counter() - begun
        used = process_cpu_ms(idle_pid) - before
        per_s = sent / (took - _PUT_OFF_S)
        of_core = used / (took - _PUT_OFF_S) / 10
        costs.append(IdleCost(wanted, per_s, (used - at_rest * took) / sent, of_core))
    return costs


async def ranvier_figures(server: RanvierWorkers, seconds: float) -> WorkerFigures:
    """Run every scenario on three or more workers."""
    workers = server.live_workers()
    (writer,) = server.writers()
    user = await make_user(HOST, server.port)
    while met_by(user.token or "", workers) == writer:
        user = await make_user(HOST, server.port)
    rooms = await make_rooms(user, AT_ONCE)
    idle = next(name for name in workers if name not in (writer, met_by(user.token or "", workers)))
    costs = await idle_costs(rooms, workers[idle], seconds)
    sent = await _sent(user, rooms.pairs[0][1], seconds)
    rooms.close()
    before, adding = await _slowest_while_adding(server, user, seconds)
    failover = await _failover(server, user)
    return WorkerFigures(costs, sent, failover, before, adding)


async def _sent(user: Client, room_id: str, seconds: float) -> Sent:
    """Send by turns over connections that stand to the room's worker in different ways.

    Whatever the user asks that concerns no room comes to another worker.
    """
    here, away, settled = clients = [user.twin() for _ in range(3)]
    await here.send(room_id, "first")
    await away.sync("timeout=0&since=s0")
    await settled.whoami()
    latencies: list[list[float]] = [[], [], [], []]
    end, turn = perf_counter() + seconds, 0
    while perf_counter() < end or turn < 100:
        moving = user.twin()
        await moving.whoami()
        # Each of them comes first, second, … as often as the others.
        for number in range(4):
            way = (number + turn) % 4
            client = (here, away, settled, moving)[way]
            begun = perf_counter()
            await client.send(room_id, "bench")
            latencies[way].append((perf_counter() - begun) * 1000)
        moving.connection.close()
        turn += 1
    spaced: list[list[float]] = [[], []]
    end = perf_counter() + seconds
    while perf_counter() < end:
        for client, of_client in zip((here, away), spaced, strict=False):
            await asyncio.sleep(0.1)
            begun = perf_counter()
            await client.send(room_id, "bench")
            of_client.append((perf_counter() - begun) * 1000)
    for client in clients:
        client.connection.close()
    return Sent(*(percentile(of_way, 50) for of_way in (*latencies, *spaced)))


async def _slowest_while_adding(server: RanvierWorkers, user: Client, seconds: float) -> tuple[float, float]:
    """Return the slowest request (ms) of a while in which nothing changes and of one with a worker added."""
    rooms = await make_rooms(user, 8)
    before = max((await send_for(rooms, seconds, 60)).latencies_ms)
    server.add_worker()
    # Long enough for the worker to start and to take over its share of the rooms.
    during = max((await send_for(rooms, max(8.0, seconds), 60)).latencies_ms)
    rooms.close()
    live = await asyncio.to_thread(server.live_workers)
    if len(live) != server.count + 1:
        raise WrongAnswerError(f"{len(live)} workers after one was added to {server.count}")
    return before, during


async def _failover(server: RanvierWorkers, user: Client) -> float:
    """Kill the worker that rooms are placed on; return after how many seconds each takes an event again."""
    workers = await asyncio.to_thread(server.live_workers)
    (victim,) = await asyncio.to_thread(server.writers)
    rooms = await make_rooms(user, 4)
    await send_for(rooms, 0.5, 20)
    os.kill(workers[victim], signal.SIGKILL)
    killed = perf_counter()
    back = await asyncio.gather(*(_until_sent(client, room_id) for client, room_id in rooms.pairs))
    rooms.close()
    return max(back) - killed


async def _until_sent(client: Client, room_id: str) -> float:
    """Send again and again, each time as a client whose connection broke does; return when it was done."""
    end = perf_counter() + _GIVE_UP_S
    while True:
        try:
            await client.send(room_id, "after")
            return perf_counter()
        except (OSError, WrongAnswerError):
            if perf_counter() > end:
                raise
            client.connection.close()
            await asyncio.sleep(0.02)
