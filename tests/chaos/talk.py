"""Many people who talk through a server of workers, and the account of it that every fault is held to."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.chaos.clients import Way, noting_way
from tests.chaos.excuses import Failure, How, Message
from tests.server.http_client import HttpClient, Unavailable, position

_LOST = (aiohttp.ClientError, ConnectionError, TimeoutError, Unavailable)
_FILTER = '{"room":{"timeline":{"limit":200}}}'
_PAUSE_S = 0.05
_MESSAGE = "m.room.message"
_STATE = "org.example.said"
EVERYBODY_SAYS = {"state_default": 0}
"""Power levels of rooms in which people talk: every fourth of their messages is a piece of state."""
_REQUEST_TIMEOUT_S = 15.0  # beyond what it asks to wait: more than any fault lasts
_SYNC_TIMEOUT_MS = 5_000


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

    Between two messages a member waits ``pause_s`` at most. Each fourth is a piece of state instead, which
    has no transaction id.

    A request that fails is repeated as clients do (with the same transaction id), and noted. An answer that
    no fault excuses (a token that is not known any more, say) ends the talk with its exception.
    """

    def __init__(
        self, members: Sequence[HttpClient], rooms: Sequence[str], *, seed: int, pause_s: float = 0.8
    ) -> None:
        self.members = members
        self.rooms = rooms
        self.sent: dict[str, tuple[str, str]] = {}  # text → room, sender
        self.answered: dict[str, tuple[str, str]] = {}  # text → room, event id
        self.event_ids: dict[str, str] = {}  # text → event id that it was told with
        self.conversations: dict[str, Conversation] = defaultdict(Conversation)
        self.failures: list[Failure] = []
        self.in_flight: dict[int, tuple[str, float]] = {}
        self.requests = 0
        self._done: list[Message] = []  # since this was asked last
        self._unanswered: dict[str, Message] = {}
        self._state: set[str] = set()  # the texts that are state
        self._seed = seed
        self._pause_s = pause_s
        self._over = False
        self._heard = asyncio.Condition()

    @property
    def deliveries(self) -> int:
        """How many messages were told to how many members."""
        return sum(sum(it.heard.values()) for it in self.conversations.values())

    def take_messages(self) -> list[Message]:
        """Give the messages that were answered since this was asked last, and those that are under way."""
        done, self._done = self._done, []
        now = time.monotonic()
        return done + [replace(it, ended=now) for it in self._unanswered.values()]

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
        assert self.event_ids.keys() == self.answered.keys() == self.sent.keys()
        await self._check_state()

    async def _check_state(self) -> None:
        """Demand that the state that was set is the rooms' state now."""
        for room_id in self.rooms:
            state = await self.members[0].get(f"/v3/rooms/{quote(room_id)}/state")
            texts = [text for text in self._state if self.sent[text][0] == room_id]
            kept = {it["event_id"] for it in state if it["type"] == _STATE}
            assert kept == {self.answered[text][1] for text in texts}

    def finish(self) -> None:
        """Have the members stop sending."""
        self._over = True

    async def wait_heard(self, timeout_s: float = 30.0) -> None:
        """Wait until all members were told of all that is answered by now, and check it."""
        answered = dict(self.answered)
        try:
            async with asyncio.timeout(timeout_s), self._heard:
                await self._heard.wait_for(lambda: not self._missing(answered))
        except TimeoutError:
            raise AssertionError(f"not told after {timeout_s:.0f} s: {self._missing(answered)[:5]}") from None
        for text, (_, event_id) in answered.items():
            assert self.event_ids[text] == event_id, (
                f"{text} was answered with {event_id}, and told as {self.event_ids[text]}"
            )

    async def wait_said(self, count: int, timeout_s: float = 30.0) -> None:
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
            what, path = "send", f"/v3/rooms/{quote(room_id)}/send/{_MESSAGE}/n{number}"
            if number % 4 == 0:
                what, path = "state", f"/v3/rooms/{quote(room_id)}/state/{_STATE}/{number}{member.user_id}"
                self._state.add(text)
            self.sent[text] = room_id, member.user_id
            message = self._unanswered[text] = Message(text, time.monotonic())
            while text not in self.answered:
                message.ways.append(Way())
                answer = await self._ask(what, member, "PUT", path, content, noted=message.ways[-1])
                if answer is not None:
                    self.answered[text] = room_id, answer["event_id"]
            message.ended = time.monotonic()
            self._done.append(self._unanswered.pop(text))
            await asyncio.sleep(chance.uniform(self._pause_s / 4, self._pause_s))

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
            for room_id, event in news:
                self._hear(member, room_id, event)
            token = answer["next_batch"]
            assert position(token) >= position(since), f"the token of {member.user_id} went back"
            since = token
            if news:
                async with self._heard:
                    self._heard.notify_all()

    def _hear(self, member: HttpClient, room_id: str, event: Any) -> None:
        """Note a message. Raises AssertionError if nobody sent it there, or if it is two events."""
        text, event_id = event["content"]["body"], event["event_id"]
        assert self.sent.get(text) == (room_id, event["sender"]), (
            f"{member.user_id} was told {event} in {room_id}, and sent was {self.sent.get(text)}"
        )
        first = self.event_ids.setdefault(text, event_id)
        if first != event_id:
            failed = [it for it in self.failures if event["sender"] in it.what]
            raise AssertionError(
                f"{text} was sent once and is two events, {first} and {event_id}, in {room_id}; answered was "
                f"{self.answered.get(text)}, failed were {failed}"
            )
        self.conversations[room_id].hear(member.user_id, event_id)

    async def _news(self, member: HttpClient, answer: Any) -> list[tuple[str, Any]] | None:
        """Give the messages of an answer, each with its room, with those before a gap."""
        found: list[tuple[str, Any]] = []
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
            found += [(room_id, it) for it in events if it["type"] in (_MESSAGE, _STATE)]
        return found

    async def _ask(
        self,
        what: str,
        member: HttpClient,
        method: str,
        path: str,
        body: Any = None,
        *,
        noted: Way | None = None,
        **query: Any,
    ) -> Any:
        """Send a request; ``None`` if it has to be repeated. ``noted`` becomes the way that it goes."""
        self.requests += 1
        number, began = self.requests, time.monotonic()
        self.in_flight[number] = what, began
        within_s = _REQUEST_TIMEOUT_S + query.get("timeout", 0) / 1000
        with noting_way(noted or Way()) as way:
            try:
                async with asyncio.timeout(within_s):
                    return await member.request(method, path, body, **query)
            except _LOST as error:
                who, ended = f"{what} of {member.user_id}", time.monotonic()
                self.failures.append(Failure(who, began, ended, _how(error), f"{error!r:.200}", way))
                await asyncio.sleep(_PAUSE_S)
                return None
            finally:
                del self.in_flight[number]


def _how(error: Exception) -> How:
    if isinstance(error, Unavailable):
        return How.UNAVAILABLE
    return How.CUT if isinstance(error, aiohttp.ClientError | ConnectionError) else How.HUNG
