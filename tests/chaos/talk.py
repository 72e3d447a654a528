"""Many people who talk through a server of workers, and the account of it that every fault is held to."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.server.http_client import HttpClient, Unavailable

_LOST = (aiohttp.ClientError, ConnectionError, TimeoutError, Unavailable)
_FILTER = '{"room":{"timeline":{"limit":200}}}'
_PAUSE_S = 0.05
_REQUEST_TIMEOUT_S = 60.0
_SYNC_TIMEOUT_MS = 5_000


@dataclass(frozen=True)
class Failure:
    """A request that a client had to repeat: when it was begun and ended (monotonic seconds), and how."""

    what: str
    began: float
    ended: float
    error: str
    disconnected: bool


@dataclass
class Conversation:
    """What one room's members heard: one order, in which each of them has come to some place."""

    order: list[str] = field(default_factory=list)  # event ids
    place: dict[str, int] = field(default_factory=dict)  # event id → index in ``order``
    heard: Counter[str] = field(default_factory=Counter)  # user → how many of ``order``

    def hear(self, user_id: str, event_id: str) -> None:
        """Note what a member was told next. Raises AssertionError if it is not what the others were told."""
        count = self.heard[user_id]
        if count < len(self.order):
            assert self.order[count] == event_id, (
                f"{user_id} was told {event_id} (place {self.place.get(event_id)} of the others' order) "
                f"at place {count}, where others were told {self.order[count]}"
            )
        else:
            assert event_id not in self.place, f"{user_id} was told {event_id} twice"
            self.place[event_id] = len(self.order)
            self.order.append(event_id)
        self.heard[user_id] = count + 1

    def knows(self, user_id: str, event_id: str) -> bool:
        """Tell whether a member was told of an event."""
        return self.place.get(event_id, self.heard[user_id]) < self.heard[user_id]


class Talk:
    """Have all members sync, and send into rooms that they are all in, until ``finish``.

    A request that fails is repeated as clients do (with the same transaction id), and noted. An answer that
    no fault excuses (a token that is not known any more, say) ends the talk with its exception.
    """

    def __init__(self, members: Sequence[HttpClient], rooms: Sequence[str], *, seed: int) -> None:
        self.members = members
        self.rooms = rooms
        self.answered: dict[str, tuple[str, str]] = {}  # text → room, event id
        self.texts: dict[str, str] = {}  # event id → text that came with it
        self.conversations: dict[str, Conversation] = defaultdict(Conversation)
        self.failures: list[Failure] = []
        self.in_flight: dict[int, tuple[str, float]] = {}
        self.requests = 0
        self.slowest_s = 0.0
        self._seed = seed
        self._over = False
        self._heard = asyncio.Condition()

    @property
    def deliveries(self) -> int:
        """How many messages were told to how many members."""
        return sum(sum(it.heard.values()) for it in self.conversations.values())

    async def run(self, started: asyncio.Event) -> None:
        """Talk until ``finish`` and until all is heard. Raises AssertionError for what a person would see."""
        tokens = await asyncio.gather(*(member.sync(filter=_FILTER) for member in self.members))
        async with asyncio.TaskGroup() as tasks:
            listening = [
                tasks.create_task(self._listen(member, answer["next_batch"]))
                for member, answer in zip(self.members, tokens, strict=True)
            ]
            async with asyncio.TaskGroup() as senders:
                for number, member in enumerate(self.members):
                    senders.create_task(self._send(member, random.Random(f"{self._seed} {number}")))
                started.set()
            await self.wait_heard()
            for task in listening:
                task.cancel()
        assert {self.texts[event_id] for _, event_id in self.answered.values()} == self.answered.keys()

    def finish(self) -> None:
        """Have the members stop sending."""
        self._over = True

    async def wait_heard(self, timeout_s: float = 60.0) -> None:
        """Wait until all members were told of all that is answered by now, and check it."""
        answered = dict(self.answered)
        try:
            async with asyncio.timeout(timeout_s), self._heard:
                await self._heard.wait_for(lambda: not self._missing(answered))
        except TimeoutError:
            raise AssertionError(f"not told after {timeout_s:.0f} s: {self._missing(answered)[:5]}") from None
        for text, (_, event_id) in answered.items():
            assert self.texts[event_id] == text, (
                f"{text} was answered with the event of {self.texts[event_id]}"
            )
        assert len({event_id for _, event_id in answered.values()}) == len(answered)

    async def wait_said(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many messages more are answered."""
        wanted = len(self.answered) + count
        async with asyncio.timeout(timeout_s):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.02)

    def _missing(self, answered: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
        latest: dict[str, int] = {}
        for text, (room_id, event_id) in answered.items():
            place = self.conversations[room_id].place.get(event_id)
            if place is None:
                return [("all", text)]
            latest[room_id] = max(latest.get(room_id, -1), place)
        return [
            (member.user_id, f"{room_id} from {self.conversations[room_id].heard[member.user_id]} to {place}")
            for member in self.members
            for room_id, place in latest.items()
            if self.conversations[room_id].heard[member.user_id] <= place
        ]

    async def _send(self, member: HttpClient, chance: random.Random) -> None:
        number = 0
        while not self._over:
            number += 1
            text, room_id = f"{member.user_id} {number}", chance.choice(self.rooms)
            content = {"msgtype": "m.text", "body": text}
            path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/n{number}"
            begun = time.monotonic()
            while text not in self.answered:
                answer = await self._ask("send", member, "PUT", path, content)
                if answer is not None:
                    self.answered[text] = room_id, answer["event_id"]
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            await asyncio.sleep(chance.uniform(0.2, 0.8))

    async def _listen(self, member: HttpClient, since: str) -> None:
        while True:
            answer = await self._ask(
                "sync", member, "GET", "/v3/sync", since=since, timeout=_SYNC_TIMEOUT_MS, filter=_FILTER
            )
            if answer is None:
                continue
            news = await self._news(member, answer)
            if news is None:
                continue  # the part before a gap could not be had: sync again, as if nothing had come
            for room_id, event_id, text in news:
                self.texts.setdefault(event_id, text)
                self.conversations[room_id].hear(member.user_id, event_id)
            token = answer["next_batch"]
            assert position(token) >= position(since), f"the token of {member.user_id} went back"
            since = token
            if news:
                async with self._heard:
                    self._heard.notify_all()

    async def _news(self, member: HttpClient, answer: Any) -> list[tuple[str, str, str]] | None:
        """Give the messages (room, event id, text) of an answer, with those before a gap."""
        found: list[tuple[str, str, str]] = []
        for room_id, room in answer.get("rooms", {}).get("join", {}).items():
            timeline = room.get("timeline", {})
            events = list(timeline.get("events", []))
            token = timeline.get("prev_batch") if timeline.get("limited") else None
            while token is not None:
                path = f"/v3/rooms/{quote(room_id)}/messages"
                page = await self._ask("messages", member, "GET", path, dir="b", limit=100, **{"from": token})
                if page is None:
                    return None
                conversation = self.conversations[room_id]
                older = [it for it in page["chunk"] if not conversation.knows(member.user_id, it["event_id"])]
                events[:0] = reversed(older)
                token = page.get("end") if len(older) == len(page["chunk"]) else None
            found += [
                (room_id, it["event_id"], it["content"]["body"])
                for it in events
                if it["type"] == "m.room.message"
            ]
        return found

    async def _ask(
        self, what: str, member: HttpClient, method: str, path: str, body: Any = None, **query: Any
    ) -> Any:
        """Send a request; ``None``, and noted, if it has to be repeated."""
        self.requests += 1
        number, began = self.requests, time.monotonic()
        self.in_flight[number] = what, began
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                return await member.request(method, path, body, **query)
        except _LOST as error:
            who, ended = f"{what} of {member.user_id}", time.monotonic()
            cut = isinstance(error, aiohttp.ClientConnectionError | ConnectionError)
            self.failures.append(Failure(who, began, ended, f"{error!r:.200}", cut))
            await asyncio.sleep(_PAUSE_S)
            return None
        finally:
            del self.in_flight[number]


def position(token: str) -> int:
    """Give the position of a sync token."""
    return int(token[1:].partition("_")[0])
