"""What is seeded: which rooms there are, who is in them, and which position of the log is whose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import asyncpg

_SEED = 1871
_EXISTING_SHARE = 0.3
_EVENTS_PER_NEW_ROOM = 1000
_LARGEST_ROOM = 100
_EXISTING_ROOMS = """
SELECT r.room_id, c.sender AS creator, array_agg(s.state_key ORDER BY s.state_key) AS members
FROM rooms r
JOIN current_state s ON s.room_nid = r.room_nid AND s.type = 'm.room.member' AND s.membership = 'join'
JOIN current_state k ON k.room_nid = r.room_nid AND k.type = 'm.room.create'
JOIN events c ON c.event_nid = k.event_nid
GROUP BY r.room_nid, c.sender
HAVING count(*) > 1 AND bool_and(s.state_key LIKE '%:' || $1) AND bool_or(s.state_key = c.sender)
ORDER BY r.room_nid
"""


@dataclass(frozen=True)
class PlannedRoom:
    """One room to write into, its creator the first member; `room_id` is None for one that is to be made."""

    number: int
    room_id: str | None
    members: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class Plan:
    """`events` events at the positions after `before`, spread over `rooms` by their weights."""

    server_name: str
    before: int
    events: int
    rooms: tuple[PlannedRoom, ...]
    new_users: tuple[str, ...]

    def slices(self, size: int) -> Iterator[list[tuple[int, int]]]:
        """Give every position with the number of its room, in order, `size` at a time; always the same."""
        random = Random(_SEED)
        numbers = range(len(self.rooms))
        weights = list(accumulate(room.weight for room in self.rooms))
        for start in range(0, self.events, size):
            count = min(size, self.events - start)
            chosen = random.choices(numbers, cum_weights=weights, k=count)
            yield [(self.before + start + place, number) for place, number in enumerate(chosen, 1)]


async def make_plan(connection: asyncpg.Connection, events: int) -> Plan:
    """Plan so many events: a part for the rooms of several members that are there, the rest for new ones."""
    server_name = await connection.fetchval("SELECT server_name FROM server")
    before = await connection.fetchval("SELECT pos FROM log_head FOR UPDATE")
    random = Random(_SEED)
    existing = await connection.fetch(_EXISTING_ROOMS, server_name)
    new_rooms = max(1, events // _EVENTS_PER_NEW_ROOM)
    numbers = range(max(_LARGEST_ROOM, new_rooms))
    users = tuple(f"@seeded{before}-{number}:{server_name}" for number in numbers)
    rooms = [
        PlannedRoom(number, room["room_id"], _creator_first(room), _EXISTING_SHARE / len(existing))
        for number, room in enumerate(existing)
    ]
    weights = [min(random.paretovariate(1.2), 20.0) for _ in range(new_rooms)]
    for weight in weights:
        size = min(1 + int(random.paretovariate(0.9)), _LARGEST_ROOM)
        share = weight / sum(weights) * (1 - _EXISTING_SHARE)
        rooms.append(PlannedRoom(len(rooms), None, tuple(random.sample(users, size)), share))
    return Plan(server_name, before, events, tuple(rooms), users)


def _creator_first(room: asyncpg.Record) -> tuple[str, ...]:
    others = (member for member in room["members"] if member != room["creator"])
    return (room["creator"], *others)
