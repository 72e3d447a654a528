"""Sending messages: one after another, and from 16 or 48 clients at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench.client import check
from bench.measure import Recording
from bench.scenarios.base import Bench
from bench.waiters import waiting
from bench.world import SMALL_ROOMS, USERS

CLIENTS = 16
MANY_CLIENTS = 48
_VERIFIED = 500
_TEXT = "Saltatory conduction: the signal leaps from node to node. "


async def send_serial(bench: Bench) -> None:
    """Send from one user into a room of 5, each message after the answer to the one before."""
    user, room_id = bench.world.users[0], bench.world.small_rooms[0]
    sent: list[str] = []
    with bench.meter.measure("send_serial") as recording:
        for number in bench.pace.budget(100, 5, at_most=2000):
            sent.append(await recording.time(user.send(room_id, f"{_TEXT}{number}")))
    await _verify(bench, {room_id: sent})


async def send_many_rooms(bench: Bench) -> None:
    """Send from 16 clients, each in turn into the small rooms that its user is in."""
    await _send_into_small_rooms(bench, "send_many_rooms", CLIENTS)


async def send_many_clients(bench: Bench) -> None:
    """Do the same from 48 clients."""
    await _send_into_small_rooms(bench, "send_many_clients", MANY_CLIENTS)


async def send_attended(bench: Bench) -> None:
    """Send as from 16 clients while one more waits at each worker, for a room in which nothing happens."""
    async with waiting(bench.waiters):
        await _send_into_small_rooms(bench, "send_attended", CLIENTS)


async def _send_into_small_rooms(bench: Bench, name: str, clients: int) -> None:
    rooms_of = {number: bench.world.small_rooms_of(number) for number in _senders(clients)}
    check(len({room for rooms in rooms_of.values() for room in rooms}) == SMALL_ROOMS, "some room is silent")
    await _send_at_once(bench, name, clients, lambda user, n: rooms_of[user][n % len(rooms_of[user])])


async def send_one_room(bench: Bench) -> None:
    """Send from 16 clients into the room of 50."""
    await _send_at_once(bench, "send_one_room", CLIENTS, lambda _user, _n: bench.world.big_room)


def _senders(clients: int) -> list[int]:
    # 3 and 50 have no common divisor that would leave rooms out: the senders' rooms cover all the small ones.
    return [3 * number % USERS for number in range(clients)]


async def _send_at_once(bench: Bench, name: str, clients: int, room_for: Callable[[int, int], str]) -> None:
    sent: dict[str, list[str]] = {}
    with bench.meter.measure(name) as recording:
        async with asyncio.TaskGroup() as group:
            for user in _senders(clients):
                group.create_task(_send_on(bench, user, room_for, recording, sent))
    await _verify(bench, sent)


async def _send_on(
    bench: Bench,
    user: int,
    room_for: Callable[[int, int], str],
    recording: Recording,
    sent: dict[str, list[str]],
) -> None:
    for number in bench.pace.budget(10, 10):
        room_id = room_for(user, number)
        event_id = await recording.time(bench.world.users[user].send(room_id, f"{_TEXT}{user}/{number}"))
        sent.setdefault(room_id, []).append(event_id)


async def _verify(bench: Bench, sent: dict[str, list[str]]) -> None:
    """Check that each room's newest events are those that were sent there, each once, and none besides."""
    total = [event_id for events in sent.values() for event_id in events]
    check(len(total) == len(set(total)), "an event ID was answered twice")
    for room_id, events in sent.items():
        reader = bench.world.users[_some_member(bench, room_id)]
        wanted, start = min(len(events), _VERIFIED), ""
        found: list[str] = []
        while len(found) < wanted:
            page = await reader.messages(room_id, min(100, wanted - len(found)), start)
            check(bool(page["chunk"]), f"history ends after {len(found)} of {wanted} events")
            found += [event["event_id"] for event in page["chunk"]]
            start = page.get("end", "")
        check(len(set(found)) == wanted, "an event is in the history twice")
        check(set(found) <= set(events), "the newest events of a room are not those that were sent")


def _some_member(bench: Bench, room_id: str) -> int:
    users = bench.world.users
    return next(number for number, user in enumerate(users) if room_id in bench.world.rooms_of[user.user_id])
