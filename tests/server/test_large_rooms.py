"""Rooms of thousands: answers that are made in many slices hold everything once, and are one moment's."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from bench.seed.large_room import seed_large_room
from tests.postgres import private_folder
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess

MEMBERS = 2601
EVENTS = 700
USERS = 24
LAZY = '{"room":{"state":{"lazy_load_members":true}}}'


class LargeRoom:
    """A server with a room of ``MEMBERS``; the first of them, who made it, are logged in.

    As it is shared by the tests of this module, each of them may add members and events, but none may go.
    """

    def __init__(self, server: ServerProcess, users: list[HttpClient]) -> None:
        self.server = server
        self.users = users
        self.room_id = ""
        self.joined = MEMBERS

    @property
    def path(self) -> str:
        """Where the room's endpoints are."""
        return f"/v3/rooms/{quote(self.room_id)}"

    async def room_of(self, answer: Any, kind: str = "join") -> Any:
        """Give the room's part of a sync answer."""
        return answer["rooms"][kind][self.room_id]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeded() -> AsyncIterator[LargeRoom]:
    """Make the room once for all tests here."""
    with private_folder() as folder:
        server = ServerProcess(folder)
        async with AsyncExitStack() as stack:
            try:
                await server.start()
                users = [await stack.enter_async_context(HttpClient(server.url)) for _ in range(USERS)]
                for number, user in enumerate(users):
                    await user.register(f"large{number}")
                    await user.close()
                await server.stop()
                room = LargeRoom(server, users)
                known = [user.user_id for user in users[:-3]]
                room.room_id = await seed_large_room(folder / "data", known, MEMBERS, EVENTS)
                await server.start()
                yield room
            finally:
                await server.stop()


@pytest.fixture
async def large(seeded: LargeRoom) -> AsyncIterator[LargeRoom]:
    """Give the room; its users' connections belong to the event loop of one test."""
    yield seeded
    for user in seeded.users:
        await user.close()


def joined_of(events: list[Any]) -> list[str]:
    """Give the state keys of those member events that are joins, as often as they are there."""
    members = [event for event in events if event["type"] == "m.room.member"]
    return [event["state_key"] for event in members if event["content"]["membership"] == "join"]


def check_once(names: list[str]) -> set[str]:
    """Check that nobody is named twice, and give them as a set."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    assert not twice
    return set(names)


async def joined(large: LargeRoom, user: HttpClient) -> set[str]:
    """Give who is joined, by ``/joined_members``."""
    return set((await user.get(f"{large.path}/joined_members"))["joined"])


def state_after(room: Any) -> dict[tuple[str, str], Any]:
    """Give the state that a client has after a whole room of a sync."""
    events = [*room["state"]["events"], *room["timeline"]["events"]]
    return {(event["type"], event["state_key"]): event for event in events if "state_key" in event}


async def test_everybody_is_in_every_answer_once(large: LargeRoom) -> None:
    """Members would be missing from the list of a large room, or be there twice."""
    user = large.users[1]
    everybody = await joined(large, user)
    # A few of them may have left while they talked.
    assert MEMBERS - 30 < len(everybody) <= MEMBERS + 3
    members = (await user.get(f"{large.path}/members"))["chunk"]
    check_once([event["state_key"] for event in members])
    assert check_once(joined_of(members)) == everybody
    filtered = (await user.get(f"{large.path}/members", membership="join"))["chunk"]
    assert check_once(joined_of(filtered)) == everybody
    others = (await user.get(f"{large.path}/members", not_membership="join"))["chunk"]
    assert len(others) + len(filtered) == len(members)
    assert check_once(joined_of(await user.get(f"{large.path}/state"))) == everybody
    peeked = await user.get(f"{large.path}/initialSync")
    assert check_once(joined_of(peeked["state"])) == everybody
    (first,) = (await user.get("/v3/initialSync"))["rooms"]
    assert check_once(joined_of(first["state"])) == everybody

    newest = (await user.get(f"{large.path}/messages", dir="b", limit=1))["chunk"][0]
    context = await user.get(f"{large.path}/context/{quote(newest['event_id'])}", limit=0)
    assert check_once(joined_of(context["state"])) == everybody


async def test_syncs_hold_the_whole_room(large: LargeRoom) -> None:
    """A client that begins anew, or asks for everything, would show a part of a large room."""
    user = large.users[2]
    everybody = await joined(large, user)
    answer = await user.sync()
    room = await large.room_of(answer)
    check_once(joined_of(room["state"]["events"]))
    assert set(joined_of(list(state_after(room).values()))) == everybody
    assert room["summary"]["m.joined_member_count"] == len(everybody)
    full = await large.room_of(await user.sync(answer["next_batch"], full_state="true"))
    assert check_once(joined_of(full["state"]["events"])) == everybody
    lazy = await large.room_of(await user.sync(filter=LAZY))
    told = check_once([e["state_key"] for e in lazy["state"]["events"] if e["type"] == "m.room.member"])
    senders = {event["sender"] for event in lazy["timeline"]["events"]}
    assert told <= senders | {user.user_id}
    kinds = {event["type"] for event in lazy["state"]["events"]} | {
        event["type"] for event in lazy["timeline"]["events"]
    }
    assert {"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.name"} <= kinds


async def test_many_begin_at_once(large: LargeRoom) -> None:
    """When many clients sync at once, one would get a part of another's answer, or none."""
    users = large.users[: USERS - 3]
    everybody = await joined(large, users[0])
    answers = await asyncio.gather(*(user.sync() for user in users))
    for answer in answers:
        room = await large.room_of(answer)
        assert set(joined_of(list(state_after(room).values()))) == everybody


async def test_the_whole_history_in_pages(large: LargeRoom) -> None:
    """Scrolling back through a large room, somebody would miss messages or see some twice."""
    user = large.users[3]
    seen: list[str] = []
    query: dict[str, Any] = {"dir": "b", "limit": 1000}
    while True:
        page = await user.get(f"{large.path}/messages", **query)
        seen += [event["event_id"] for event in page["chunk"]]
        if "end" not in page:
            break
        query["from"] = page["end"]
    assert len(check_once(seen)) >= MEMBERS + EVENTS
    forwards = await user.get(f"{large.path}/messages", dir="f", limit=1000)
    assert [event["event_id"] for event in forwards["chunk"]] == seen[::-1][:1000]


async def test_who_comes_and_goes_is_told(large: LargeRoom) -> None:
    """Who joins a large room would not see it, or the others not see who came, left or has a new name."""
    watcher, newcomer = large.users[4], large.users[-1]
    before = await joined(large, watcher)
    since = (await watcher.sync(filter=LAZY))["next_batch"]
    new_since = (await newcomer.sync())["next_batch"]
    await newcomer.join(large.room_id)
    room = await large.room_of(await newcomer.sync(new_since))
    assert set(joined_of(list(state_after(room).values()))) == before | {newcomer.user_id}
    told = await large.room_of(answer := await watcher.sync(since, filter=LAZY))
    assert newcomer.user_id in joined_of(told["timeline"]["events"])
    assert told["summary"]["m.joined_member_count"] == len(before) + 1

    old = answer["next_batch"]
    await newcomer.put(
        f"{large.path}/state/m.room.member/{quote(newcomer.user_id)}",
        {"membership": "join", "displayname": "Renamed"},
    )
    names = (await watcher.get(f"{large.path}/joined_members"))["joined"]
    assert names[newcomer.user_id]["display_name"] == "Renamed"
    await large.users[0].post(f"{large.path}/kick", {"user_id": newcomer.user_id})
    assert await joined(large, watcher) == before
    then = (await watcher.get(f"{large.path}/members", at=old, membership="join"))["chunk"]
    assert check_once(joined_of(then)) == before | {newcomer.user_id}
    left = await large.room_of(await newcomer.sync(new_since, full_state="true"), "leave")
    assert left["timeline"]["events"][-1]["content"]["membership"] == "leave"


async def test_a_message_wakes_everybody_who_waits(large: LargeRoom) -> None:
    """Of many who wait for a message in a large room some would get it late, twice, or never."""
    users = large.users[: USERS - 3]
    tokens = [(await user.sync(filter=LAZY))["next_batch"] for user in users]
    waiting = [
        asyncio.create_task(user.sync(token, timeout_ms=30_000, filter=LAZY))
        for user, token in zip(users * 6, tokens * 6, strict=True)
    ]
    event_id = await large.users[0].send(large.room_id, "awake")
    for answer in await asyncio.gather(*waiting):
        told = (await large.room_of(answer))["timeline"]["events"]
        assert [event["event_id"] for event in told] == [event_id]


async def test_a_name_of_long_ago_is_redacted(large: LargeRoom) -> None:
    """What was taken back would still be shown as the state of a large room."""
    owner, reader = large.users[0], large.users[5]
    first = await reader.get(f"{large.path}/messages", dir="f", limit=20)
    rules = next(event for event in first["chunk"] if event["type"] == "m.room.history_visibility")
    await owner.put(f"{large.path}/state/m.room.topic", {"topic": "a secret"})
    topic = await reader.get(f"{large.path}/state/m.room.topic", format="event")
    for event in (rules, topic):
        await owner.put(f"{large.path}/redact/{quote(event['event_id'])}/{quote(event['event_id'][1:9])}", {})
    state = {event["type"]: event for event in await reader.get(f"{large.path}/state")}
    assert state["m.room.topic"]["content"] == {}
    assert "redacted_because" in state["m.room.history_visibility"]["unsigned"]


async def test_stalls_are_in_the_metrics(large: LargeRoom) -> None:
    """An administrator could not see that a server keeps its users waiting."""
    metrics = await asyncio.to_thread(_read, f"{large.server.url}/metrics")
    counts = [
        line for line in metrics.splitlines() if line.startswith("ranvier_event_loop_lag_seconds_count")
    ]
    assert len(counts) == 1
    assert float(counts[0].split()[-1]) > 0


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
