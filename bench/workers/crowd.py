"""A room of readers and somebody who talks there; each of them comes with a new connection now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from time import perf_counter

from bench.client import Client, WrongAnswerError, check
from bench.measure import Recording
from bench.workers.load import make_user

_TALKS_PER_S = 10.0
_ANEW_AFTER = 20
_POLL_MS = 30_000
_LATEST_S = 30.0


@dataclass
class _Reader:
    client: Client
    since: str
    polls: int
    arrived: dict[str, float] = field(default_factory=dict)

    async def read(self) -> None:
        """Poll for ever."""
        while True:
            self.polls += 1
            if self.polls % _ANEW_AFTER == 0:
                self.client.connection.close()
            answer = await self.client.sync(f"timeout={_POLL_MS}&since={self.since}")
            now = perf_counter()
            self.since = answer["next_batch"]
            for room in answer.get("rooms", {}).get("join", {}).values():
                timeline = room.get("timeline", {})
                check(not timeline.get("limited", False), "a reader's timeline has a gap")
                for event in timeline.get("events", ()):
                    check(event["event_id"] not in self.arrived, "a reader got a message twice")
                    self.arrived[event["event_id"]] = now


@dataclass
class Crowd:
    """Readers of one room, whose polls go on until it is closed."""

    talker: Client
    room_id: str
    readers: list[_Reader]
    polls: list[asyncio.Task[None]]

    async def talk(self, seconds: float) -> tuple[Recording, Recording]:
        """Send into the room for some time; return how long sending took, and each delivery from then on."""
        sent, delivered = Recording(), Recording()
        sent_at: dict[str, float] = {}
        begun, number = perf_counter(), 0
        while perf_counter() < begun + seconds:
            if number % _ANEW_AFTER == 0:
                self.talker.connection.close()
            at = perf_counter()
            sent_at[await sent.time(self.talker.send(self.room_id, "talk"))] = at
            number += 1
            await asyncio.sleep(max(0.0, begun + number / _TALKS_PER_S - perf_counter()))
        await self._wait_arrived(sent_at.keys())
        for reader in self.readers:
            delivered.latencies_ms += [(reader.arrived[it] - at) * 1000 for it, at in sent_at.items()]
        return sent, delivered

    def close(self) -> None:
        """End the polls and close all connections."""
        for poll in self.polls:
            poll.cancel()
        for client in (self.talker, *(reader.client for reader in self.readers)):
            client.connection.close()

    async def _wait_arrived(self, event_ids: Set[str]) -> None:
        end = perf_counter() + _LATEST_S
        while any(not event_ids <= reader.arrived.keys() for reader in self.readers):
            for poll in self.polls:
                if poll.done():
                    poll.result()
            if perf_counter() > end:
                raise WrongAnswerError(f"a message was not delivered within {_LATEST_S:.0f} s")
            await asyncio.sleep(0.02)


async def make_crowd(host: str, port: int, count: int, fits: Callable[[str], bool]) -> Crowd:
    """Have so many users join one room, of an ID that fits, and poll."""
    talker = await make_user(host, port)
    while not fits(room_id := await talker.create_room("crowd")):
        pass
    clients = [await make_user(host, port) for _ in range(count)]
    for client in clients:
        await client.join(room_id)
    readers: list[_Reader] = []
    for number, client in enumerate(clients):  # not all of them come anew at once
        readers.append(_Reader(client.twin(), (await client.sync("timeout=0"))["next_batch"], number))
        client.connection.close()
    return Crowd(talker, room_id, readers, [asyncio.create_task(reader.read()) for reader in readers])
