"""People who talk through several workers, and what each was told: the account that faults are held to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.server.http_client import HttpClient, Unavailable

ALL = '{"room":{"timeline":{"limit":1000}}}'
_LOST = (aiohttp.ClientError, ConnectionError, Unavailable, TimeoutError)


@dataclass
class Told:
    """What one member was told: messages (event ids, and texts) in order, and how often a token went back."""

    messages: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    backwards: int = 0
    failed: int = 0


class Talk:
    """Have members send and sync until ``stop``; failed requests are repeated as clients do."""

    def __init__(self, members: Sequence[HttpClient], rooms: Sequence[str]) -> None:
        self.members = members
        self.rooms = rooms
        self.told = [Told() for _ in members]
        self.sent: dict[str, str] = {}  # event id: text
        self.failed = 0
        self.slowest_s = 0.0
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin: each member reads, and writes into each room in turn."""
        tokens = [(await member.sync(filter=ALL))["next_batch"] for member in self.members]
        for number, member in enumerate(self.members):
            self._tasks.append(asyncio.create_task(self._read(member, self.told[number], tokens[number])))
            self._tasks.append(asyncio.create_task(self._write(number, member)))

    async def stop(self, timeout_s: float = 60.0) -> None:
        """End writing and wait until everybody was told of everything that was answered 200."""
        self._stopped = True
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._tasks[1::2])
            while any(not set(self.sent) <= set(told.messages) for told in self.told):
                for task in self._tasks[::2]:
                    if task.done():
                        await task
                await asyncio.sleep(0.05)

    async def cancel(self) -> None:
        """End everything at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Demand that each message reached each member once, all in one order, and no token went back.

        A message that a client repeated, and that became two events, is told twice as well.
        """
        for told in self.told:
            assert told.backwards == 0
            assert len(told.messages) == len(set(told.messages)), "somebody was told of an event twice"
            twice = [text for text, count in Counter(told.texts).items() if count > 1]
            assert not twice, f"messages became two events: {twice[:5]}"
            assert set(self.sent) <= set(told.messages), "somebody was not told of a message"
            read = dict(zip(told.messages, told.texts, strict=True))
            assert read == self.sent, "somebody was told of what nobody sent, or of another text"
        for told in self.told[1:]:
            assert told.messages == self.told[0].messages, "two members were told in different orders"

    async def _write(self, number: int, member: HttpClient) -> None:
        count = 0
        loop = asyncio.get_running_loop()
        while not self._stopped:
            room_id = self.rooms[count % len(self.rooms)]
            count += 1
            text = f"{number} {count}"
            path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/{number}-{count}"
            while True:
                begun = loop.time()
                try:
                    async with asyncio.timeout(30):
                        answer = await member.put(path, {"msgtype": "m.text", "body": text})
                    break
                except _LOST:
                    self.failed += 1
                    await asyncio.sleep(0.05)
            self.slowest_s = max(self.slowest_s, loop.time() - begun)
            self.sent[answer["event_id"]] = text
            await asyncio.sleep(0.01)

    async def _read(self, member: HttpClient, told: Told, since: str) -> None:
        while True:
            try:
                async with asyncio.timeout(40):
                    answer = await member.sync(since, 10_000, filter=ALL)
            except _LOST:
                told.failed += 1
                await asyncio.sleep(0.05)
                continue
            if _position(answer["next_batch"]) < _position(since):
                told.backwards += 1
            await self._note(member, told, answer, since)
            since = answer["next_batch"]

    async def _note(self, member: HttpClient, told: Told, answer: Any, since: str) -> None:
        events: list[Any] = []
        for room_id in self.rooms:
            room = answer.get("rooms", {}).get("join", {}).get(room_id)
            if room is not None:
                timeline = room["timeline"]
                if timeline["limited"]:
                    events += await self._gap(member, room_id, timeline["prev_batch"], since)
                events += timeline["events"]
        for event in events:
            if event["type"] == "m.room.message":
                told.messages.append(event["event_id"])
                told.texts.append(event["content"]["body"])

    async def _gap(self, member: HttpClient, room_id: str, start: str, since: str) -> list[Any]:
        """Read what a sync left out, as clients do; in order."""
        found: list[Any] = []
        token: str | None = start
        while token is not None:
            try:
                page = await member.get(
                    f"/v3/rooms/{quote(room_id)}/messages",
                    **{"dir": "b", "from": token, "to": since, "limit": 100},
                )
            except _LOST:
                await asyncio.sleep(0.05)
                continue
            found += page["chunk"]
            token = page.get("end")
        return found[::-1]


def _position(token: str) -> int:
    return int(token[1:].partition("_")[0])
