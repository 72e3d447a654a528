"""Users in rooms of their own, sending at a pace or as fast as they can."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from bench.client import Client
from bench.measure import Recording

AT_ONCE = 16


@dataclass
class Rooms:
    """Rooms with a client each, whose connection is new: the first request on it says where it goes."""

    pairs: list[tuple[Client, str]] = field(default_factory=list)

    def close(self) -> None:
        """Close all connections."""
        for client, _ in self.pairs:
            client.connection.close()


async def make_user(host: str, port: int) -> Client:
    """Register a user of a name that nobody has."""
    user = Client(host, port, f"w{secrets.token_hex(6)}")
    await user.register(secrets.token_hex(8))
    return user


async def make_rooms(user: Client, count: int, port: int | None = None) -> Rooms:
    """Create `count` rooms; their clients use `port`, else the user's."""
    rooms = Rooms()
    for _ in range(count):
        twin = user.twin()
        if port is not None:
            twin = Client(user.host, port, user.name)
            twin.user_id, twin.token = user.user_id, user.token
        rooms.pairs.append((twin, await user.create_room("bench")))
    return rooms


async def send_for(
    rooms: Rooms, seconds: float, per_s: float | None = None, *, anew_after: int | None = None
) -> Recording:
    """Send into all rooms for some time, `per_s` events in all, or as many as there can be.

    Each client comes with a new connection after `anew_after` of its events.
    """
    recording = Recording()
    pause = len(rooms.pairs) / per_s if per_s else 0.0
    begun = perf_counter()

    async def send(client: Client, room_id: str, number: int) -> None:
        turn = number * pause / len(rooms.pairs)
        while perf_counter() < begun + seconds:
            await asyncio.sleep(max(0.0, begun + turn - perf_counter()) if pause else 0)
            number += 1  # not all of them come anew at once
            if anew_after and number % anew_after == 0:
                client.connection.close()
            await recording.time(client.send(room_id, "bench"))
            turn += pause

    async with asyncio.TaskGroup() as group:
        for number, (client, room_id) in enumerate(rooms.pairs):
            group.create_task(send(client, room_id, number))
    return recording


def process_cpu_ms(pid: int) -> float:
    """Return the CPU time of a process in ms, all its threads together, finer than a clock tick."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
