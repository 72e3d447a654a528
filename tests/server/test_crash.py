"""The server is killed again and again while people talk: nothing that was answered may be lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg

from ranvier.processes.postgres import running_dsn
from tests.server.http_client import HttpClient, Unavailable
from tests.server.process import ServerProcess

KILLS = 50
USERS = 6
ROOMS = 3
_LOST = (aiohttp.ClientError, ConnectionError, TimeoutError, Unavailable)


@dataclass
class _Talk:
    """What was said and what was heard."""

    answered: dict[str, str] = field(default_factory=dict)  # body → event id
    heard: dict[str, dict[str, list[tuple[str, str]]]] = field(default_factory=dict)  # user → room → events
    requests_lost: int = 0
    over: bool = False


async def _send(user: HttpClient, rooms: list[str], talk: _Talk, seed: int) -> None:
    chance = random.Random(seed)
    number = 0
    while not talk.over:
        number += 1
        body = f"{user.user_id} {number}"
        room_id = chance.choice(rooms)
        while body not in talk.answered:
            try:
                talk.answered[body] = await user.send(room_id, body, txn_id=f"n{number}")
            except _LOST:
                # The client does what clients do: it tries again with the same transaction id.
                talk.requests_lost += 1
                await asyncio.sleep(0.03)


async def _listen(user: HttpClient, talk: _Talk, expected: asyncio.Event) -> None:
    heard = talk.heard[user.user_id] = {}
    since: str | None = None
    while not expected.is_set():
        try:
            answer = await user.sync(since, timeout_ms=500, filter='{"room":{"timeline":{"limit":100}}}')
            events = await _events_of(user, answer, heard)
        except _LOST:
            talk.requests_lost += 1
            await asyncio.sleep(0.03)
            continue
        for room_id, news in events.items():
            heard.setdefault(room_id, []).extend(news)
        assert since is None or _position(answer["next_batch"]) >= _position(since), "the token went back"
        since = answer["next_batch"]


async def _events_of(
    user: HttpClient, answer: Any, heard: dict[str, list[tuple[str, str]]]
) -> dict[str, list[tuple[str, str]]]:
    """Give the messages of an answer, with those before a gap fetched as clients do."""
    found: dict[str, list[tuple[str, str]]] = {}
    for room_id, room in answer.get("rooms", {}).get("join", {}).items():
        timeline = room.get("timeline", {})
        events = list(timeline.get("events", []))
        known = {event_id for event_id, _ in heard.get(room_id, [])}
        token = timeline.get("prev_batch")
        gap = timeline.get("limited", False)
        while gap and token is not None:
            path = f"/v3/rooms/{quote(room_id)}/messages"
            page = await user.get(path, dir="b", limit=100, **{"from": token})
            older = [event for event in page["chunk"] if event["event_id"] not in known]
            events[:0] = reversed(older)
            gap = len(older) == len(page["chunk"])
            token = page.get("end")
        found[room_id] = [
            (e["event_id"], e["content"]["body"]) for e in events if e["type"] == "m.room.message"
        ]
    return found


def _position(token: str) -> int:
    return int(token[1:].partition("_")[0])


async def test_nothing_answered_is_lost_when_the_server_is_killed(own_server: ServerProcess) -> None:
    """Messages would vanish, come twice or in another order after a crash or a power cut."""
    chance = random.Random(2)
    await own_server.start()
    users = [await HttpClient(own_server.url).register(f"u{n}") for n in range(USERS)]
    rooms = [await users[0].create_room() for _ in range(ROOMS)]
    for user in users[1:]:
        for room_id in rooms:
            await user.join(room_id)
    talk = _Talk()
    everything_heard = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        senders = [tasks.create_task(_send(user, rooms, talk, n)) for n, user in enumerate(users)]
        for user in users:
            tasks.create_task(_listen(user, talk, everything_heard))
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.02, 0.4))
            own_server.kill()
            await own_server.start()
        talk.over = True
        await asyncio.gather(*senders)
        async with asyncio.timeout(60):
            while not all(_all_heard(talk, user.user_id) for user in users):
                await asyncio.sleep(0.1)
        everything_heard.set()
    _check_deliveries(talk)
    await _check_positions(own_server)
    print(
        f"\n{KILLS} kills, {len(talk.answered)} messages answered, {talk.requests_lost} requests lost, "
        f"{sum(len(r) for u in talk.heard.values() for r in u.values())} deliveries"
    )
    for user in users:
        await user.close()


def _all_heard(talk: _Talk, user_id: str) -> bool:
    heard = {body for events in talk.heard.get(user_id, {}).values() for _, body in events}
    return heard >= talk.answered.keys()


def _check_deliveries(talk: _Talk) -> None:
    assert len(talk.answered) > KILLS, "the test said too little to find anything"
    orders: dict[str, list[tuple[str, str]]] = {}
    for user_id, rooms in talk.heard.items():
        bodies = Counter(body for events in rooms.values() for _, body in events)
        assert not [body for body, count in bodies.items() if count > 1], f"{user_id} heard something twice"
        for room_id, events in rooms.items():
            for event_id, body in events:
                assert talk.answered[body] == event_id, f"{body} was answered with another event"
            assert orders.setdefault(room_id, events) == events, f"{user_id} heard {room_id} in another order"


async def _check_positions(server: ServerProcess) -> None:
    dsn = running_dsn(server.folder / "data")
    assert dsn is not None
    connection = await asyncpg.connect(dsn)
    try:
        head = await connection.fetchval("SELECT pos FROM log_head")
        positions = await connection.fetch(
            "SELECT pos FROM events WHERE pos > 0 UNION ALL SELECT pos FROM log ORDER BY pos"
        )
    finally:
        await connection.close()
    assert [record["pos"] for record in positions] == list(range(1, head + 1))
