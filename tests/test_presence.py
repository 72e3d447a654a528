"""Presence: by syncing and by the client API, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest

from ranvier.client_api.presence import MAX_STATUS_LENGTH, ROUTES
from ranvier.config.rooms import PresenceConfig
from ranvier.log.bus import Ephemeral, LocalBus
from ranvier.spec.filters import NO_FILTER, Filter, parse_filter
from ranvier.storage.erasure import ErasureStore
from ranvier.storage.presence import PresenceRow, PresenceStore
from ranvier.sync.sections.presence import PresenceSection
from ranvier.users.presence import Presence
from ranvier.users.presence_states import PresenceStates
from ranvier.users.returning import ReturningUsers
from ranvier.users.shown_presence import ShownPresence
from ranvier.wire.tokens import Token
from tests.core import Core, running_core
from tests.endpoints import Endpoints, ManualClock, background, nobody_ignored, serving, sync_context

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"
CONFIG = PresenceConfig(
    enabled=True,
    include_offline_users_on_sync=False,
    last_active_granularity_ms=60_000,
    sync_online_timeout_ms=30_000,
    idle_timeout_ms=300_000,
)


@dataclass
class Scene:
    """A room of Alice and Bob; Carol is a stranger."""

    core: Core
    bus: LocalBus
    clock: ManualClock
    store: PresenceStore
    states: PresenceStates
    presence: Presence
    section: PresenceSection
    http: Endpoints
    room_id: str
    messages: list[Ephemeral]

    async def put(self, user: str, body: Any, of: str | None = None) -> tuple[int, Any]:
        """Set a status."""
        return await self.http.ask("PUT", user, f"/presence/{of or user}/status", body)

    async def get(self, asking: str, user: str) -> tuple[int, Any]:
        """Ask for a status."""
        return await self.http.ask("GET", asking, f"/presence/{user}/status")

    async def told(self, user: str, since: Token | None = None, filter: Filter = NO_FILTER) -> dict[str, Any]:
        """Give what a sync tells of presence, by user."""
        context = await sync_context(self.core, self.bus, user, since, filter)
        value = await (self.section.initial(context) if since is None else self.section.since(context))
        events = [] if value is None else orjson.loads(value)["events"]
        assert all(event["type"] == "m.presence" for event in events)
        return {event["sender"]: event["content"] for event in events}

    async def now(self) -> Token:
        """Give the token of a sync at this moment."""
        return (await sync_context(self.core, self.bus, ALICE)).upto

    async def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.forward(seconds)
        await self.presence.settle()


def build(
    core: Core, bus: LocalBus, clock: ManualClock, config: PresenceConfig = CONFIG, process: str = "main"
) -> tuple[PresenceStore, PresenceStates, Presence, ShownPresence, PresenceSection]:
    """Build all of presence."""
    store, states = PresenceStore(core.database), PresenceStates(bus=bus)
    presence = Presence(
        config=config, states=states, store=store, tail=core.tail, clock=clock, process=process
    )
    shown = ShownPresence(
        config=config,
        states=states,
        store=store,
        memberships=core.memberships,
        rooms=core.rooms,
        clock=clock,
    )
    section = PresenceSection(
        config=config, states=states, shown=shown, store=store, rooms=core.rooms, ignored=nobody_ignored
    )
    return store, states, presence, shown, section


def build_returning(
    core: Core, states: PresenceStates, clock: ManualClock, process: str = "main"
) -> ReturningUsers:
    """Build what looks after the users of a process that is gone."""
    return ReturningUsers(
        config=CONFIG, states=states, store=PresenceStore(core.database), clock=clock, process=process
    )


async def until_asked(clock: ManualClock, presence: Presence, returning: ReturningUsers) -> None:
    """Let one process ask for those whose time has come, and another one answer."""
    await returning.settle()
    await presence.settle()
    clock.forward(3.1)
    await returning.settle()


async def sync_once(presence: Presence, user_id: str, device_id: str, shown: str) -> None:
    """Let a device sync, as ``shown``, without waiting for anything."""
    async with presence.syncing(user_id, device_id, shown):
        pass


@pytest.fixture
async def scene(database: str, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Serve the endpoints; a test may ask for another configuration."""
    config = getattr(request, "param", CONFIG)
    bus, clock, messages = LocalBus(), ManualClock(), list[Ephemeral]()
    async with running_core(database, bus=bus) as core:
        store, states, presence, shown, section = build(core, bus, clock, config)
        bus.listen(ephemerals=messages.append)
        room_id = await core.create_room()
        await core.join(room_id, BOB)
        async with serving(ROUTES, {"presence": presence, "shown_presence": shown}) as http:
            yield Scene(core, bus, clock, store, states, presence, section, http, room_id, messages)


async def test_who_syncs_is_online_and_who_stops_is_not(scene: Scene) -> None:
    """Nobody would be seen online, or everybody for ever."""
    since = await scene.now()
    async with scene.presence.syncing(BOB, "PHONE", "online"):
        told = await scene.told(ALICE, since)
        assert told == {BOB: {"presence": "online", "currently_active": True, "last_active_ago": 0}}
        assert await scene.told(ALICE) == told
        await scene.later(31)
        assert (await scene.told(ALICE))[BOB]["presence"] == "online"
    since = await scene.now()
    await scene.later(28)
    assert await scene.told(ALICE, since) == {}
    await scene.later(3)
    assert (await scene.told(ALICE, since))[BOB]["presence"] == "offline"
    assert await scene.told(ALICE) == {}


async def test_syncing_on_and_on_wakes_nobody_and_writes_nothing(scene: Scene) -> None:
    """A thousand people who do nothing would keep each other's phones and the database busy."""
    for _ in range(50):
        await sync_once(scene.presence, BOB, "PHONE", "online")
        async with scene.presence.syncing(BOB, "LAPTOP", "online"):
            await scene.later(20)
    assert len(scene.messages) == 1
    await scene.presence.flush()
    assert await scene.store.get(BOB) == PresenceRow(
        BOB, None, orjson.loads(scene.messages[0].body)[1], "main"
    )


async def test_a_client_may_sync_without_being_online(scene: Scene) -> None:
    """An app that fetches in the background would show its user as online all night."""
    await sync_once(scene.presence, BOB, "PHONE", "offline")
    assert await scene.told(ALICE) == {}
    await sync_once(scene.presence, BOB, "PHONE", "unavailable")
    assert (await scene.told(ALICE))[BOB]["presence"] == "unavailable"
    await sync_once(scene.presence, BOB, "PHONE", "offline")
    assert await scene.told(ALICE) == {}


async def test_the_most_present_device_counts(scene: Scene) -> None:
    """Who leaves a tablet lying idle would be shown as idle while writing on the phone."""
    await sync_once(scene.presence, BOB, "TABLET", "unavailable")
    await sync_once(scene.presence, BOB, "PHONE", "online")
    await sync_once(scene.presence, BOB, "TABLET", "unavailable")
    assert (await scene.told(ALICE))[BOB]["presence"] == "online"
    await sync_once(scene.presence, BOB, "PHONE", "offline")
    assert (await scene.told(ALICE))[BOB]["presence"] == "unavailable"


async def test_who_does_nothing_becomes_idle_and_by_writing_active_again(scene: Scene) -> None:
    """Somebody who went home would be seen as active; or who writes, as away."""
    async with scene.presence.syncing(BOB, "PHONE", "online"):
        await scene.later(61)
        assert (await scene.told(ALICE))[BOB] == {
            "presence": "online",
            "currently_active": False,
            "last_active_ago": 61_000,
        }
        await scene.later(240)
        assert (await scene.told(ALICE))[BOB]["presence"] == "unavailable"
        since = await scene.now()
        await scene.core.send(scene.room_id, BOB, "I am back")
        await scene.presence.settle()
        told = (await scene.told(ALICE, since))[BOB]
        assert told == {"presence": "online", "currently_active": True, "last_active_ago": 0}


async def test_being_active_is_told_once(scene: Scene) -> None:
    """Each message would cost everybody in all rooms of its sender a second one."""
    async with scene.presence.syncing(BOB, "PHONE", "online"):
        for n in range(20):
            await scene.core.send(scene.room_id, BOB, str(n))
            await scene.later(10)
        assert len(scene.messages) == 1
        scene.clock.forward(30)
        assert (await scene.told(ALICE))[BOB]["last_active_ago"] <= 60_000


async def test_a_status_is_told_and_kept(scene: Scene, database: str) -> None:
    """ "In a meeting" would be seen by nobody, or be gone after a restart."""
    since = await scene.now()
    assert await scene.put(BOB, {"presence": "unavailable", "status_msg": "In a meeting"}) == (200, {})
    expected = {"presence": "unavailable", "status_msg": "In a meeting", "last_active_ago": 0}
    assert await scene.told(ALICE, since) == {BOB: expected}
    assert await scene.get(ALICE, BOB) == (200, expected)
    assert await scene.get(BOB, BOB) == (200, expected)
    await scene.later(31)
    assert (await scene.get(ALICE, BOB))[1] == {**expected, "presence": "offline", "last_active_ago": 31_000}
    await scene.presence.flush()
    async with running_core(database) as core:
        *_, presence, shown, _ = build(core, LocalBus(), scene.clock)
        assert (await shown.status(ALICE, BOB))["status_msg"] == "In a meeting"
        await sync_once(presence, BOB, "PHONE", "online")
        assert (await shown.status(ALICE, BOB))["status_msg"] == "In a meeting"
    assert await scene.put(BOB, {"presence": "online"}) == (200, {})
    assert "status_msg" not in (await scene.get(ALICE, BOB))[1]


async def test_nothing_is_kept_of_who_was_erased(scene: Scene) -> None:
    """When somebody who wished to be forgotten was there last would be kept for ever."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    await scene.presence.flush()
    assert await scene.store.get(BOB) is not None
    await scene.core.database.execute(
        "INSERT INTO accounts (user_id, created_ts, deactivated, erased) VALUES ($1, 0, true, true)", BOB
    )
    await ErasureStore(scene.core.database).remove_shown(BOB)
    await scene.later(31)
    await scene.presence.flush()
    assert await scene.store.get(BOB) is None


async def test_a_status_can_be_taken_back_while_offline(scene: Scene) -> None:
    """ "In a meeting" would come back after the next restart."""
    await scene.store.put([PresenceRow(BOB, "In a meeting", 5, None)])
    assert await scene.put(BOB, {"presence": "offline"}) == (200, {})
    await scene.presence.flush()
    row = await scene.store.get(BOB)
    assert row is not None
    assert row.status_msg is None


async def test_after_a_crash_nobody_stays_online(scene: Scene, database: str) -> None:
    """Who closed their laptop while the server was down would be online for ever."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    await sync_once(scene.presence, ALICE, "PHONE", "online")
    await scene.presence.flush()
    bus = LocalBus()
    async with running_core(database, bus=bus) as core:
        _, states, presence, _, section = build(core, bus, scene.clock)
        returning = build_returning(core, states, scene.clock)
        await returning.resume()
        assert states.present == {ALICE, BOB}
        await sync_once(presence, ALICE, "PHONE", "online")
        since = Token(core.tail.pos, *bus.ephemeral_now())
        scene.clock.forward(91)
        await sync_once(presence, ALICE, "PHONE", "online")
        await until_asked(scene.clock, presence, returning)
        told = await section.since(await sync_context(core, bus, ALICE, since))
        assert told is not None
        [event] = orjson.loads(told)["events"]
        assert (event["sender"], event["content"]["presence"]) == (BOB, "offline")
        row = await PresenceStore(core.database).get(BOB)
        assert row is not None
        assert row.process is None


async def test_who_went_elsewhere_from_a_dead_process_stays_online(scene: Scene) -> None:
    """Those whose worker died would be online for ever; or those who reconnected would be said to be gone."""
    _, _, dead, _, _ = build(scene.core, scene.bus, scene.clock, process="dead")
    for user in (ALICE, BOB):
        await sync_once(dead, user, "PHONE", "online")
    await dead.flush()
    since, count = await scene.now(), len(scene.messages)
    heir = build_returning(scene.core, scene.states, scene.clock, process="heir")
    late = build_returning(scene.core, scene.states, scene.clock, process="late")
    assert await heir.left_by() == {"dead"}
    await heir.take_over("dead")
    await late.take_over("dead")
    await heir.take_over("dead")
    await sync_once(scene.presence, ALICE, "PHONE", "online")
    assert len(scene.messages) == count
    scene.clock.forward(31)
    await sync_once(scene.presence, ALICE, "PHONE", "online")
    await late.settle()
    await until_asked(scene.clock, scene.presence, heir)
    assert {user: told["presence"] for user, told in (await scene.told(ALICE, since)).items()} == {
        BOB: "offline"
    }
    assert not any(it.key == ALICE and b"offline" in it.body for it in scene.messages)
    await scene.presence.flush()
    assert {user: row.process for user in (ALICE, BOB) if (row := await scene.store.get(user))} == {
        ALICE: "main",
        BOB: None,
    }


async def test_what_was_told_and_not_yet_written_is_taken_over_too(scene: Scene) -> None:
    """Who came online in the last seconds of a worker would be online for ever."""
    _, _, dead, _, _ = build(scene.core, scene.bus, scene.clock, process="dead")
    await sync_once(dead, BOB, "PHONE", "online")
    heirs = [build_returning(scene.core, scene.states, scene.clock, process=it) for it in ("one", "two")]
    for heir in heirs:  # as where workers disagree for a moment
        assert await heir.left_by() == {"dead"}
        await heir.take_over("dead")
    since = await scene.now()
    scene.clock.forward(31)
    for _ in range(2):
        for heir in heirs:
            await heir.settle()
        scene.clock.forward(3.1)
    assert (await scene.told(ALICE, since))[BOB]["presence"] == "offline"
    assert await heirs[0].left_by() == set()


async def test_who_is_waited_for_is_known_after_a_reset_of_the_bus(scene: Scene) -> None:
    """Redis and a worker lost together would leave people offline who never went away."""
    await scene.store.put([PresenceRow(BOB, "here", 5, "dead")])
    heir = build_returning(scene.core, scene.states, scene.clock, process="heir")
    await heir.take_over("dead")
    scene.bus._epoch, scene.bus._count = "new", 0
    await scene.bus.publish_ephemeral("presence", CAROL, b'["online",5,false,null,"other"]')
    await heir.settle()
    assert (await scene.told(ALICE, Token(0, 0, "new")))[BOB]["status_msg"] == "here"


async def test_strangers_see_nothing(scene: Scene) -> None:
    """Anybody could watch when somebody sleeps."""
    since = await scene.now()
    await sync_once(scene.presence, BOB, "PHONE", "online")
    assert await scene.told(CAROL) == {}
    assert await scene.told(CAROL, since) == {}
    for user in (BOB, "@nobody:example.org"):
        status, error = await scene.get(CAROL, user)
        assert (status, error["errcode"]) == (403, "M_FORBIDDEN")
    assert await scene.get(CAROL, CAROL) == (200, {"presence": "offline"})


async def test_a_user_is_told_of_their_own_presence(scene: Scene) -> None:
    """A client could not show its user what others see of them."""
    since = await scene.now()
    await sync_once(scene.presence, CAROL, "PHONE", "online")
    assert set(await scene.told(CAROL, since)) == set(await scene.told(CAROL)) == {CAROL}


async def test_who_comes_into_a_room_sees_and_is_seen(scene: Scene) -> None:
    """In a room that one just joined everybody would seem to be offline."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    await sync_once(scene.presence, CAROL, "PHONE", "online")
    since = await scene.now()
    await scene.core.join(scene.room_id, CAROL)
    await scene.presence.settle()
    assert (await scene.told(CAROL, since))[BOB]["presence"] == "online"
    assert (await scene.told(ALICE, since))[CAROL]["presence"] == "online"


async def test_many_are_found_with_and_without_the_rooms_in_memory(scene: Scene) -> None:
    """On a server with many users, those in rooms not in memory would seem to be offline."""
    crowd = {f"@u{n}:example.org" for n in range(30)}
    other = await scene.core.create_room()
    for n, user in enumerate(sorted(crowd)):
        await scene.core.join(scene.room_id if n % 2 else other, user)
    for user in (*crowd, CAROL):
        await sync_once(scene.presence, user, "PHONE", "online")
    assert set(await scene.told(ALICE)) == crowd
    scene.core.rooms.drop(other)
    assert set(await scene.told(ALICE)) == crowd


async def test_old_tokens_get_the_present_state(scene: Scene) -> None:
    """After a restart of the server a client would not see who is online."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    assert set(await scene.told(ALICE, Token(scene.core.tail.pos, 9, "another"))) == {BOB}
    assert await scene.told(ALICE, await scene.now()) == {}


async def test_filters_and_ignored_users(scene: Scene) -> None:
    """Who wants to hear nothing of somebody would still see them come and go."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    definitions: list[Any] = [
        {"types": []},
        {"not_senders": [BOB]},
        {"senders": [ALICE]},
        {"not_types": ["*"]},
    ]
    for definition in definitions:
        assert await scene.told(ALICE, filter=parse_filter({"presence": definition})) == {}

    async def ignored(user_id: str) -> frozenset[str]:
        return frozenset({BOB})

    scene.section._ignored = ignored
    assert await scene.told(ALICE) == {}


@pytest.mark.parametrize(
    ("of", "body", "status", "errcode"),
    [
        (BOB, {"presence": "online"}, 403, "M_FORBIDDEN"),
        (ALICE, {"presence": "busy"}, 400, "M_BAD_JSON"),
        (ALICE, {}, 400, "M_BAD_JSON"),
        (ALICE, {"presence": "online", "status_msg": 5}, 400, "M_BAD_JSON"),
        (ALICE, {"presence": "online", "status_msg": "x" * (MAX_STATUS_LENGTH + 1)}, 400, "M_INVALID_PARAM"),
        (ALICE, {"presence": "online", "status_msg": "\0"}, 400, "M_BAD_JSON"),
    ],
)
async def test_wrong_requests_are_refused(
    scene: Scene, of: str, body: Any, status: int, errcode: str
) -> None:
    """One could speak for others, or fill the server with long texts."""
    answer, error = await scene.put(ALICE, body, of)
    assert (answer, error["errcode"]) == (status, errcode)
    assert scene.messages == []
    status, error = await scene.get(ALICE, "nobody")
    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("scene", [replace(CONFIG, enabled=False)], indirect=True)
async def test_a_server_without_presence_takes_it_and_tells_nothing(scene: Scene) -> None:
    """Clients of a server that has it switched off would show errors, or it would work for nothing."""
    assert await scene.put(BOB, {"presence": "online", "status_msg": "here"}) == (200, {})
    await sync_once(scene.presence, BOB, "PHONE", "online")
    async with scene.presence.syncing(BOB, "PHONE", "online"):
        assert await scene.told(ALICE) == {}
    assert scene.messages == []
    assert await scene.get(ALICE, BOB) == (200, {"presence": "offline"})


@pytest.mark.parametrize("scene", [replace(CONFIG, include_offline_users_on_sync=True)], indirect=True)
async def test_offline_users_are_told_of_if_so_configured(scene: Scene) -> None:
    """An administrator's choice that clients see when somebody was last there would do nothing."""
    await scene.store.put([PresenceRow(BOB, "gone", scene.clock.now_ms() - 5000, None)])
    await scene.store.put([PresenceRow(CAROL, "gone", 5, None)])
    expected = {"presence": "offline", "status_msg": "gone", "last_active_ago": 5000}
    assert await scene.told(ALICE) == {BOB: expected}


async def test_two_processes_agree(scene: Scene) -> None:
    """A user whose devices are connected to two workers would come and go all the time."""
    _, states, other, _, _ = build(scene.core, scene.bus, scene.clock, process="other")
    async with other.syncing(BOB, "LAPTOP", "online"):
        await sync_once(scene.presence, BOB, "PHONE", "unavailable")
        await other.settle()
        assert scene.states.get(BOB) == states.get(BOB)
        assert (await scene.told(ALICE))[BOB]["presence"] == "online"
        await scene.later(100)
        await other.settle()
        assert (await scene.told(ALICE))[BOB]["presence"] == "online"
        count = len(scene.messages)
        await scene.presence.settle()
        await other.settle()
        assert len(scene.messages) == count


async def test_who_goes_on_at_another_worker_is_not_said_to_have_left(scene: Scene) -> None:
    """Behind a proxy polls come to any worker: people would go and come back for all others, for ever."""
    _, states, other, _, _ = build(scene.core, scene.bus, scene.clock, process="other")
    woken: list[str] = []
    scene.states.listen(
        lambda user_id, state: woken.append(state.presence), lambda: None, lambda user_id, process: None
    )
    async with other.syncing(BOB, "PHONE", "online"):
        scene.clock.forward(20)
    since, count = await scene.now(), len(scene.messages)
    async with scene.presence.syncing(BOB, "PHONE", "online"):
        await scene.later(5.1)
        assert [message.kind for message in scene.messages[count:]] == ["presence_owner"]
        for _ in range(5):
            scene.clock.forward(20)  # the other one sees nobody any more
            await other.settle()
            await scene.presence.settle()
        known = states.get(BOB)
        assert known is not None
        assert (known.presence, known.process) == ("online", "main")
    told = await scene.told(ALICE, since)
    assert told[BOB]["presence"] == "online", "nothing but that they have done nothing for a while"
    assert "offline" not in woken
    await scene.later(31)
    await other.settle()
    assert (await scene.told(ALICE, since))[BOB]["presence"] == "offline"
    assert woken.count("offline") == 1
    await other.flush()
    await scene.presence.flush()
    row = await scene.store.get(BOB)
    assert row is not None
    assert row.process is None


async def test_who_polls_at_several_workers_by_turns_is_told_of_by_one(scene: Scene) -> None:
    """Each short poll would be a message to all workers; or the first one would tell for ever."""
    _, _, other, _, _ = build(scene.core, scene.bus, scene.clock, process="other")
    await sync_once(other, BOB, "PHONE", "online")
    count = len(scene.messages)
    for _ in range(100):
        opened = scene.presence.sync_begins(BOB, "PHONE", "online")
        if opened is None:
            async with scene.presence.syncing(BOB, "PHONE", "online"):
                await scene.later(0.2)
        else:
            await scene.later(0.2)
            scene.presence.sync_ends(BOB, opened)
    assert [message.kind for message in scene.messages[count:]] == ["presence_owner"]


async def test_who_is_always_answered_at_once_is_taken_over_too(scene: Scene) -> None:
    """Somebody in busy rooms, whose polls never wait, would be offline for a moment after each move."""
    _, _, other, _, _ = build(scene.core, scene.bus, scene.clock, process="other")
    await sync_once(other, BOB, "PHONE", "online")
    for _ in range(40):
        async with scene.presence.syncing(BOB, "PHONE", "online"):
            pass
        await scene.later(1)
        await other.settle()
    assert [message.kind for message in scene.messages if message.key == BOB].count("presence_owner") == 1
    assert not any(b"offline" in message.body for message in scene.messages)
    # Here nobody polls any more, and two devices poll by turns elsewhere and here: one message each 15 s.
    count = len(scene.messages)
    async with other.syncing(BOB, "LAPTOP", "online"), scene.presence.syncing(BOB, "PHONE", "online"):
        for _ in range(20):
            await scene.later(1)
            await other.settle()
    assert 1 <= len([it for it in scene.messages[count:] if it.kind == "presence_owner"]) <= 2


async def test_a_device_that_sees_less_says_nothing(scene: Scene) -> None:
    """With a phone in a pocket and a laptop in use somebody would be away and back for all others."""
    _, _, other, _, _ = build(scene.core, scene.bus, scene.clock, process="other")
    async with other.syncing(BOB, "LAPTOP", "online"):
        count = len(scene.messages)
        for _ in range(3):
            async with scene.presence.syncing(BOB, "PHONE", "unavailable"):
                await scene.later(10)
                await other.settle()
        await scene.presence.settle()
        assert not scene.presence._deadlines.due(), "it would look again and again"
        assert len(scene.messages) == count
        # What is told anew, since somebody does not know of Bob yet, is told by who sees more.
        async with scene.presence.syncing(BOB, "PHONE", "unavailable"):
            await scene.core.join(await scene.core.create_room(), BOB)
            await scene.later(1)
            await other.settle()
        async with scene.presence.syncing(BOB, "PHONE", "unavailable"):
            await scene.later(1)
        assert not any(b"unavailable" in message.body for message in scene.messages)
        await scene.later(100)
        await other.settle()
        assert (await scene.told(ALICE))[BOB]["presence"] == "online"


async def test_a_reset_of_the_bus_is_survived(scene: Scene) -> None:
    """After a restart of Redis everybody would be offline until they leave and come back."""
    await sync_once(scene.presence, BOB, "PHONE", "online")
    scene.bus._epoch, scene.bus._count = "new", 0
    await scene.bus.publish_ephemeral("presence", CAROL, b'["online",5,false,null,"other"]')
    await scene.presence.settle()
    assert scene.states.present == {BOB, CAROL}
    assert (await scene.told(ALICE, Token(0, 0, "new")))[BOB]["presence"] == "online"


async def test_what_runs_always_ends_and_writes(scene: Scene) -> None:
    """Nobody would ever go offline by time alone; or a status would be lost when the server stops."""
    ended = asyncio.Event()

    def look(message: Ephemeral) -> None:
        if b"offline" in message.body:
            ended.set()

    scene.bus.listen(ephemerals=look)
    async with background(scene.presence.run()):
        await scene.put(BOB, {"presence": "online", "status_msg": "here"})
        scene.clock.forward(31)
        scene.presence._deadlines._sooner.set()
        await asyncio.wait_for(ended.wait(), 10)
    row = await scene.store.get(BOB)
    assert row is not None
    assert (row.status_msg, row.process) == ("here", None)
