"""Typing notifications through the client API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from ranvier.client_api.typing import ROUTES
from ranvier.log.bus import Ephemeral, LocalBus
from ranvier.log.clock import SystemClock
from ranvier.spec.filters import parse_filter
from ranvier.sync.sections.typing import TypingSection
from ranvier.users.typing import MAX_TIMEOUT_MS, TypingUsers
from ranvier.users.typing_rooms import MAX_TYPING, TYPING, TypingRoom
from ranvier.wire.tokens import Token
from tests.core import Core, running_core
from tests.endpoints import (
    Endpoints,
    ManualClock,
    background,
    nobody_ignored,
    room_events,
    serving,
    sync_context,
)

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"


@dataclass
class Scene:
    """A room of Alice and Bob, and a clock that the test sets."""

    core: Core
    bus: LocalBus
    clock: ManualClock
    typing: TypingUsers
    section: TypingSection
    http: Endpoints
    room_id: str
    told: int = 0

    def count(self, message: Ephemeral) -> None:
        """Count the messages that wake the room."""
        self.told += message.kind == TYPING

    async def types(self, user: str, body: Any, of: str | None = None) -> tuple[int, Any]:
        """Say that a user types."""
        return await self.http.ask("PUT", user, f"/rooms/{self.room_id}/typing/{of or user}", body)

    async def seen(self, user: str, since: Token | None = None) -> list[Any]:
        """Give the lists of typing users that a sync tells."""
        context = await sync_context(self.core, self.bus, user, since)
        events = await room_events(self.section, context, self.room_id)
        assert all(event["type"] == "m.typing" for event in events)
        return [event["content"]["user_ids"] for event in events]

    async def now(self, user: str) -> Token:
        """Give the token of a sync at this moment."""
        return (await sync_context(self.core, self.bus, user)).upto


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    """Serve the endpoint."""
    bus, clock = LocalBus(), ManualClock()
    async with running_core(database, bus=bus) as core:
        typing = TypingUsers(bus=bus, tail=core.tail, memberships=core.memberships, clock=clock)
        section = TypingSection(typing_users=typing, tail=core.tail, ignored=nobody_ignored)
        room_id = await core.create_room()
        await core.join(room_id, BOB)
        async with serving(ROUTES, {"typing_users": typing}) as http:
            made = Scene(core, bus, clock, typing, section, http, room_id)
            bus.listen(ephemerals=made.count)
            yield made


async def test_others_see_who_types_and_who_stops(scene: Scene) -> None:
    """Nobody would see that somebody is writing, or would see it for ever."""
    before = await scene.now(BOB)
    assert await scene.types(ALICE, {"typing": True, "timeout": 30_000}) == (200, {})
    assert await scene.seen(BOB, before) == [[ALICE]]
    assert await scene.seen(BOB) == [[ALICE]]
    typing = await scene.now(BOB)
    assert await scene.seen(BOB, typing) == []
    assert await scene.types(ALICE, {"typing": False}) == (200, {})
    assert await scene.seen(BOB, typing) == [[]]
    assert await scene.seen(BOB, before) == [[]]
    assert await scene.seen(BOB) == []


async def test_typing_ends_by_itself(scene: Scene) -> None:
    """Somebody whose phone died would be typing for ever."""
    await scene.types(ALICE, {"typing": True, "timeout": 20_000})
    since = await scene.now(BOB)
    scene.clock.forward(19)
    await scene.typing.expire()
    assert await scene.seen(BOB, since) == []
    scene.clock.forward(2)
    await scene.typing.expire()
    assert await scene.seen(BOB, since) == [[]]


async def test_saying_it_again_lasts_longer_and_wakes_few(scene: Scene) -> None:
    """Who writes a long message would seem to stop; or each of their reminders would wake the whole room."""
    await scene.types(ALICE, {"typing": True, "timeout": 20_000})
    for _ in range(5):
        scene.clock.forward(3)
        await scene.types(ALICE, {"typing": True, "timeout": 20_000})
    assert scene.told == 1
    scene.clock.forward(15)
    await scene.typing.expire()
    assert await scene.seen(BOB) == [[ALICE]]
    assert scene.told == 2
    scene.clock.forward(6)
    await scene.typing.expire()
    assert await scene.seen(BOB) == []


async def test_the_server_ends_it_on_time_by_itself(scene: Scene) -> None:
    """The timeout would be kept only when somebody else types."""
    typing = TypingUsers(
        bus=scene.bus, tail=scene.core.tail, memberships=scene.core.memberships, clock=SystemClock()
    )
    async with background(typing.run()):
        await typing.set(ALICE, scene.room_id, True, 30)
        await wait_for_message(scene.bus)
    typists = typing.of(scene.room_id)
    assert typists is not None
    assert typists.user_ids == ()


async def wait_for_message(bus: LocalBus) -> Ephemeral:
    """Wait for the next message."""
    future: asyncio.Future[Ephemeral] = asyncio.get_running_loop().create_future()
    bus.listen(ephemerals=lambda message: None if future.done() else future.set_result(message))
    return await asyncio.wait_for(future, 10)


async def test_several_people_type_at_once(scene: Scene) -> None:
    """One who begins to type would hide another."""
    since = await scene.now(BOB)
    await scene.types(ALICE, {"typing": True, "timeout": 10_000})
    await scene.types(BOB, {"typing": True, "timeout": 30_000})
    assert await scene.seen(BOB, since) == [[ALICE, BOB]]
    scene.clock.forward(11)
    await scene.typing.expire()
    assert await scene.seen(ALICE, since) == [[BOB]]


async def test_who_leaves_stops_typing(scene: Scene) -> None:
    """Somebody who was kicked would go on typing."""
    await scene.types(BOB, {"typing": True})
    await scene.core.writer.write(
        scene.room_id,
        lambda draft: draft.add(
            sender=BOB, type="m.room.member", state_key=BOB, content={"membership": "leave"}
        ),
    )
    await scene.typing.expire()
    assert await scene.seen(ALICE) == []
    assert (await scene.types(BOB, {"typing": True}))[0] == 403


@pytest.mark.parametrize(
    ("user", "of", "body", "status", "errcode"),
    [
        (ALICE, BOB, {"typing": True}, 403, "M_FORBIDDEN"),
        (CAROL, CAROL, {"typing": True}, 403, "M_FORBIDDEN"),
        (ALICE, ALICE, {}, 400, "M_BAD_JSON"),
        (ALICE, ALICE, {"typing": "yes"}, 400, "M_BAD_JSON"),
        (ALICE, ALICE, {"typing": True, "timeout": "long"}, 400, "M_BAD_JSON"),
        (ALICE, ALICE, None, 400, "M_NOT_JSON"),
    ],
)
async def test_wrong_requests_are_refused(
    scene: Scene, user: str, of: str, body: Any, status: int, errcode: str
) -> None:
    """One could type for others, or in rooms of strangers; or a client's mistake would go unnoticed."""
    answer, error = await scene.types(user, body, of)
    assert (answer, error["errcode"]) == (status, errcode)
    assert scene.told == 0


async def test_endless_timeouts_end(scene: Scene) -> None:
    """A client could type for years with one request."""
    await scene.types(ALICE, {"typing": True, "timeout": 2**53})
    scene.clock.forward(MAX_TIMEOUT_MS / 1000 + 1)
    await scene.typing.expire()
    assert await scene.seen(BOB) == []


async def test_a_crowd_that_types_is_cut_short(scene: Scene) -> None:
    """A thousand people typing at once would send a list of a thousand to each, a thousand times."""
    crowd = [f"@u{n}:example.org" for n in range(MAX_TYPING + 5)]
    for user in crowd:
        await scene.core.join(scene.room_id, user)
        await scene.typing.set(user, scene.room_id, True, 30_000)
    [told] = await scene.seen(BOB)
    assert told == crowd[:MAX_TYPING]


async def test_ignored_users_do_not_show(scene: Scene) -> None:
    """Somebody who was ignored would still be seen typing."""

    async def ignored(user_id: str) -> frozenset[str]:
        return frozenset({ALICE} if user_id == BOB else ())

    since = await scene.now(BOB)
    scene.section = TypingSection(typing_users=scene.typing, tail=scene.core.tail, ignored=ignored)
    await scene.types(ALICE, {"typing": True})
    assert await scene.seen(BOB, since) == [[]]
    assert await scene.seen(ALICE, since) == [[ALICE]]


async def test_a_filter_leaves_typing_out(scene: Scene) -> None:
    """A client that does not want to know would be woken by every keystroke."""
    since = await scene.now(BOB)
    await scene.types(ALICE, {"typing": True})
    wanted = parse_filter({"room": {"ephemeral": {"not_types": ["m.typing"]}}})
    for token in (None, since):
        context = await sync_context(scene.core, scene.bus, BOB, token, wanted)
        assert await room_events(scene.section, context, scene.room_id) == []


async def test_after_a_restart_clients_forget_who_typed(scene: Scene) -> None:
    """After a crash of the server somebody would be typing for ever."""
    old = Token(scene.core.tail.pos, 17, "anotherepoch")
    assert await scene.seen(BOB, old) == [[]]
    await scene.types(ALICE, {"typing": True})
    assert await scene.seen(BOB, old) == [[ALICE]]
    assert await scene.seen(BOB, Token(scene.core.tail.pos)) == [[ALICE]]
    assert await scene.seen(BOB, await scene.now(BOB)) == []


async def test_rooms_that_were_forgotten_are_told_anew(scene: Scene) -> None:
    """A client that was away for long would show somebody as typing who stopped long ago."""
    typing = TypingUsers(
        bus=scene.bus,
        tail=scene.core.tail,
        memberships=scene.core.memberships,
        clock=scene.clock,
        max_rooms=2,
    )
    scene.section = TypingSection(typing_users=typing, tail=scene.core.tail, ignored=nobody_ignored)
    await typing.set(ALICE, scene.room_id, True, 30_000)
    since = await scene.now(BOB)
    await typing.set(ALICE, scene.room_id, False, 0)
    for _ in range(3):
        await typing.set(ALICE, await scene.core.create_room(), True, 30_000)
    assert typing.of(scene.room_id) is None
    assert await scene.seen(BOB, since) == [[]]


async def test_what_a_dead_process_said_is_forgotten(scene: Scene) -> None:
    """When a worker dies, those who typed through it would type for ever."""
    message = TypingRoom().message("another", ALICE, 30.0, 0.0)
    await scene.bus.publish_ephemeral(TYPING, scene.room_id, message)
    since = await scene.now(BOB)
    assert await scene.seen(BOB) == [[ALICE]]
    scene.clock.forward(31)
    await scene.typing.expire()
    assert await scene.seen(BOB, since) == []
    scene.clock.forward(10)
    await scene.typing.expire()
    assert await scene.seen(BOB, since) == [[]]


async def test_messages_of_an_older_count_are_late(scene: Scene) -> None:
    """A message that was overtaken would bring back somebody who stopped."""
    await scene.types(ALICE, {"typing": True})
    gone = TypingRoom().message("another", ALICE, None, 0.0)
    late = Ephemeral(TYPING, scene.room_id, gone, 0, scene.bus.ephemeral_now()[1])
    for listener in scene.bus._ephemeral_listeners:
        listener(late)
    assert await scene.seen(BOB) == [[ALICE]]


async def test_a_new_epoch_voids_what_was_said(scene: Scene) -> None:
    """After a reset of the bus, counts begin anew and nobody would be seen typing for a long time."""
    await scene.types(ALICE, {"typing": True})
    begun = TypingRoom().message("another", BOB, 30.0, 0.0)
    message = Ephemeral(TYPING, scene.room_id, begun, 1, "new")
    for listener in scene.bus._ephemeral_listeners:
        listener(message)
    typists = scene.typing.of(scene.room_id)
    assert typists is not None
    assert typists.user_ids == (BOB,)
    assert scene.typing.changed(Token(0, 0, "new"), Token(0, 1, "new")) == [scene.room_id]
