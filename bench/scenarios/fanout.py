"""Delivery: 50 listeners long-poll one room while messages arrive at a steady pace."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from bench.client import Client, check
from bench.scenarios.base import Bench

MESSAGES_PER_S = 5
SECONDS = 20
_POLL_MS = 30_000
_LATEST_DELIVERY_S = 120
# A listener that lags behind must be able to get all that it missed in one answer.
_FILTER = {"room": {"timeline": {"limit": 100}}}


@dataclass
class Listener:
    """One user that long-polls; `arrived` holds (event ID, perf_counter time) in the order of arrival."""

    client: Client
    room_id: str
    filter_id: str = ""
    since: str = ""
    arrived: list[tuple[str, float]] = field(default_factory=list)

    async def begin(self) -> None:
        """Store the filter and take an initial sync, from which the long-poll goes on."""
        self.filter_id = await self.client.upload_filter(_FILTER)
        self.since = (await self.client.sync(f"timeout=0&filter={self.filter_id}"))["next_batch"]

    async def listen(self, wanted: int) -> None:
        """Poll until so many messages have arrived."""
        while len(self.arrived) < wanted:
            query = f"timeout={_POLL_MS}&filter={self.filter_id}&since={self.since}"
            answer = await self.client.sync(query)
            self._take(answer, perf_counter())

    def _take(self, answer: dict[str, Any], now: float) -> None:
        self.since = answer["next_batch"]
        room = answer.get("rooms", {}).get("join", {}).get(self.room_id)
        if room is None:
            return
        timeline = room.get("timeline", {})
        check(not timeline.get("limited", False), "a listener's timeline has a gap")
        for event in timeline.get("events", ()):
            if event["type"] == "m.room.message":
                self.arrived.append((event["event_id"], now))


async def fanout(bench: Bench) -> None:
    """Measure the time from sending to each listener's /sync answer, and the CPU per delivery.

    Every delivery is checked: each listener gets each message exactly once, all in the same order.
    """
    world = bench.world
    messages = max(10, round(MESSAGES_PER_S * SECONDS * bench.pace.seconds))
    # Several senders with a connection each, so that a slow answer does not hold up the next message.
    senders = [user.twin() for user in world.users[:20]]
    for sender in senders:
        await sender.send(world.big_room, "hello")
    listeners = [Listener(user.twin(), world.big_room) for user in world.users]
    for listener in listeners:
        await listener.begin()
    with bench.meter.measure("fanout") as recording:
        async with (
            asyncio.timeout(messages / MESSAGES_PER_S + _LATEST_DELIVERY_S),
            asyncio.TaskGroup() as group,
        ):
            polls = [group.create_task(listener.listen(messages)) for listener in listeners]
            sent_at = await _send_steadily(senders, world.big_room, messages)
            await asyncio.gather(*polls)
        recording.latencies_ms = [
            (arrived - sent_at[event_id]) * 1000
            for listener in listeners
            for event_id, arrived in listener.arrived
            if event_id in sent_at
        ]
    _verify(listeners, sent_at)
    for client in (*senders, *(listener.client for listener in listeners)):
        client.connection.close()


async def _send_steadily(senders: list[Client], room_id: str, messages: int) -> dict[str, float]:
    """Send at a fixed pace, however long the answers take; return the time at which each event was sent."""
    sent_at: dict[str, float] = {}

    async def send(number: int, client: Client) -> None:
        begun = perf_counter()
        event_id = await client.send(room_id, f"fan-out {number}")
        sent_at[event_id] = begun

    first = perf_counter()
    async with asyncio.TaskGroup() as group:
        running: list[asyncio.Task[None]] = []
        for number in range(messages):
            await asyncio.sleep(max(0.0, first + number / MESSAGES_PER_S - perf_counter()))
            if number >= len(senders):
                await running[number - len(senders)]
            running.append(group.create_task(send(number, senders[number % len(senders)])))
    return sent_at


def _verify(listeners: list[Listener], sent_at: dict[str, float]) -> None:
    order = [event_id for event_id, _ in listeners[0].arrived]
    check(len(order) == len(set(order)), "a listener got a message twice")
    check(set(order) == set(sent_at), "a listener got other messages than those that were sent")
    for listener in listeners:
        arrived = [event_id for event_id, _ in listener.arrived]
        check(arrived == order, f"{listener.client.name} got other messages, or in another order")
