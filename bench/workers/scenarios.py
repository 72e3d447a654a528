"""What only the form of several workers has: idle workers, forwarding, a worker that dies, one that comes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from bench.client import Client, WrongAnswerError, check
from bench.measure import percentile
from bench.servers.base import HOST
from bench.servers.ranvier_workers import RanvierWorkers, Workers, met_by, placed_on
from bench.waiters import make_waiter, waiting
from bench.workers.crowd import Crowd, make_crowd
from bench.workers.load import AT_ONCE, Rooms, make_rooms, make_user, process_cpu_ms, send_for

_GIVE_UP_S = 30.0
_PUT_OFF_S = 0.8  # a worker on which nobody waits follows somewhat later
_ATTENTIVE_S = 3.0  # and one on which somebody has just waited does so at once for a while
_POLLED_S = 5.0
_READERS = 40
_ROOMS = 40
_SENT_PER_S = 300.0
_ANEW_AFTER = 15
_PIECE_S = 4.0
_LIVE_S = 8.0  # for so long clients come to the added worker
_LEAST_TAKEN = 100  # of some hundred a second, its share of which is a quarter
_LOOK_S = 0.5


@dataclass(frozen=True)
class IdleCost:
    """What a worker without requests uses while others write.

    ``ms_per_event`` is all of it, divided by the events; ``at_rest_ms_per_s`` is what it uses when nothing
    happens at all. ``polled``: a client waits there, for rooms in which nothing happens.
    """

    wanted_per_s: float
    per_s: float
    ms_per_event: float
    at_rest_ms_per_s: float
    polled: bool = False

    @property
    def percent_of_core(self) -> float:
        """Return the share of one core that it uses."""
        return self.ms_per_event * self.per_s / 10

    @property
    def following_ms_per_event(self) -> float:
        """Return what an event adds to what is used at rest."""
        return self.ms_per_event - self.at_rest_ms_per_s / self.per_s


@dataclass(frozen=True)
class Adding:
    """The slowest requests and deliveries (ms), while nothing changes and while a worker is added.

    It was live after `live_after_s`, and answered `taken` requests until the end.
    """

    before_ms: float
    during_ms: float
    delivered_before_ms: float
    delivered_during_ms: float
    live_after_s: float
    taken: int


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

    idle: Sequence[IdleCost] = ()
    sent: Sent | None = None
    failover_s: float | None = None
    adding: Adding | None = None


async def idle_costs(rooms: Rooms, idle_pid: int, seconds: float, *, polled: bool = False) -> list[IdleCost]:
    """Measure a worker that gets no request: at 40 events/s, and as near to 1 000 as the machine comes."""
    await send_for(rooms, min(1.0, seconds), 20)
    await asyncio.sleep(_ATTENTIVE_S)
    before, begun = process_cpu_ms(idle_pid), perf_counter()
    await asyncio.sleep(seconds)
    at_rest = (process_cpu_ms(idle_pid) - before) / (perf_counter() - begun)
    costs = []
    for wanted in (40.0, 1000.0):
        before, begun = process_cpu_ms(idle_pid), perf_counter()
        sent = len((await send_for(rooms, seconds, wanted)).latencies_ms)
        took = perf_counter() - begun
        await asyncio.sleep(_PUT_OFF_S)
        # What is followed later counts; what it would have used in that time anyway does not.
        used = process_cpu_ms(idle_pid) - before - at_rest * _PUT_OFF_S
        costs.append(IdleCost(wanted, sent / took, used / sent, at_rest, polled))
    return costs


async def _polled_costs(port: int, workers: list[str], idle: str, rooms: Rooms, pid: int) -> list[IdleCost]:
    """Measure the same while somebody waits at the idle worker."""
    user = await make_waiter(HOST, port, idle, workers)
    async with waiting([user]):
        return await idle_costs(rooms, pid, _POLLED_S, polled=True)


async def ranvier_figures(server: RanvierWorkers, seconds: float) -> WorkerFigures:
    """Run every scenario of three or more workers of which one writes."""
    writer, workers = await find_writer(server)
    user = await make_user(HOST, server.port)
    while met_by(user.token or "", workers) == writer:
        user = await make_user(HOST, server.port)
    rooms = await make_rooms(user, AT_ONCE)
    idle = next(name for name in workers if name not in (writer, met_by(user.token or "", workers)))
    costs = await idle_costs(rooms, workers[idle], seconds)
    costs += await _polled_costs(server.port, list(workers), idle, rooms, workers[idle])
    sent = await _sent(user, rooms.pairs[0][1], seconds)
    rooms.close()
    return WorkerFigures(costs, sent, await _failover(server, user))


async def find_writer(server: RanvierWorkers) -> tuple[str, dict[str, int]]:
    """Return the worker that rooms are placed on, and the process IDs of all workers by name.

    While rooms are placed on none or several of them, or somebody does not serve, it waits for half a minute;
    then it raises WrongAnswerError.
    """

    def fits(workers: Workers) -> bool:
        return len(workers) == server.count and len(_writers(workers)) == 1

    workers = await _look_until(server, fits, "one worker is to write, and all are to serve")
    (writer,) = _writers(workers)
    return writer, {name: worker["pid"] for name, worker in workers.items()}


def _writers(workers: Workers) -> list[str]:
    return [name for name, worker in workers.items() if worker["takes_rooms"]]


async def _look_until(server: RanvierWorkers, fits: Callable[[Workers], bool], wanted: str) -> Workers:
    end = perf_counter() + _GIVE_UP_S
    while not fits(workers := await asyncio.to_thread(server.look)):
        check(perf_counter() < end, f"{wanted}; {sorted(workers)} serve, {sorted(_writers(workers))} write")
        await asyncio.sleep(_LOOK_S)
    return workers


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


async def adding_figures(server: RanvierWorkers, seconds: float) -> WorkerFigures:
    """Find the slowest of a while in which nothing changes, and of one in which a worker is added.

    Clients send into rooms of their own, others poll in a room where somebody talks. All of them come with a
    new connection now and then, so those whom the added worker is to have come to it, and it knows nothing
    of their rooms yet; that room is among these. This goes on until it has served for a while; raises
    WrongAnswerError if it had no part in that.
    """
    names = [*await asyncio.to_thread(server.live_workers), server.next_worker]
    rooms = await make_rooms(await make_user(HOST, server.port), _ROOMS)
    crowd = await make_crowd(
        HOST, server.port, _READERS, lambda room_id: placed_on(room_id, names) == server.next_worker
    )
    try:
        sent, delivered = await _slowest(rooms, crowd, seconds)
        begun = perf_counter()
        adding = asyncio.create_task(_add_worker(server))
        pieces: list[tuple[float, float]] = []
        while not adding.done() or perf_counter() < adding.result() + _LIVE_S:
            pieces.append(await _slowest(rooms, crowd, _PIECE_S))
    finally:
        rooms.close()
        crowd.close()
    sent_during, delivered_during = map(max, zip(*pieces, strict=True))
    taken: int = (await _until_added(server))[server.next_worker]["requests"]
    check(taken >= _LEAST_TAKEN, f"the added worker was asked {taken} times only")
    live_after_s = adding.result() - begun
    return WorkerFigures(adding=Adding(sent, sent_during, delivered, delivered_during, live_after_s, taken))


async def _add_worker(server: RanvierWorkers) -> float:
    """Add a worker; return when it was live."""
    server.add_worker()
    await _until_added(server)
    return perf_counter()


async def _until_added(server: RanvierWorkers) -> Workers:
    return await _look_until(server, lambda workers: server.next_worker in workers, "a worker was added")


async def _slowest(rooms: Rooms, crowd: Crowd, seconds: float) -> tuple[float, float]:
    """Return the slowest request and the slowest delivery of some time, in ms."""
    async with asyncio.TaskGroup() as group:
        senders = group.create_task(send_for(rooms, seconds, _SENT_PER_S, anew_after=_ANEW_AFTER))
        talk = group.create_task(crowd.talk(seconds))
    sent, delivered = talk.result()
    return max(*senders.result().latencies_ms, *sent.latencies_ms), max(delivered.latencies_ms)


async def _failover(server: RanvierWorkers, user: Client) -> float:
    """Kill the worker that rooms are placed on; return after how many seconds each takes an event again."""
    victim, workers = await find_writer(server)
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
