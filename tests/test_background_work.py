"""Work in the background: one thing that cannot be worked with is left out, and everything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ranvier.cluster.leases import LeaseLostError
from ranvier.log.bus import Ephemeral, LocalBus
from ranvier.processes.persevere import persevere
from ranvier.storage.batches import write_each
from ranvier.storage.database import Database, DatabaseUnavailable
from ranvier.storage.devices import DeviceStore
from ranvier.storage.presence import PresenceStore
from ranvier.users.expiry import Expiry
from ranvier.users.last_seen import LastSeen
from ranvier.users.presence import Presence
from ranvier.users.presence_states import PresenceStates
from ranvier.users.requester import Requester
from ranvier.users.returning import ReturningUsers
from ranvier.users.typing import TypingUsers
from tests.core import Core, running_core
from tests.endpoints import ManualClock, background
from tests.test_devices import make_devices
from tests.test_presence import CONFIG, sync_once
from tests.test_to_device import make_inboxes

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"
BAD = "not in a text\0"


class StubbornBus(LocalBus):
    """Fail with everything that is told of one key."""

    bad = ""

    async def publish_ephemeral(self, kind: str, key: str, body: bytes) -> Ephemeral:
        """Tell, or fail."""
        if key == self.bad:
            raise RuntimeError("a mistake of ours")
        return await super().publish_ephemeral(kind, key, body)


def presence_on(core: Core, bus: LocalBus, clock: ManualClock) -> tuple[Presence, PresenceStates]:
    """Build presence."""
    states = PresenceStates(bus=bus)
    store = PresenceStore(core.database)
    return (
        Presence(config=CONFIG, states=states, store=store, tail=core.tail, clock=clock, process="main"),
        states,
    )


async def test_the_one_at_fault_is_found_among_many() -> None:
    """One row that PostgreSQL refuses would keep all others from being written, or they be lost with it."""
    written: list[int] = []
    calls = 0

    async def write(items: Sequence[int]) -> None:
        nonlocal calls
        calls += 1
        if 700 in items:
            raise ValueError("700")
        written.extend(items)

    await write_each(write, list(range(1000)))
    assert written == [number for number in range(1000) if number != 700]
    assert calls < 25


async def test_what_is_nobodys_fault_is_told() -> None:
    """While the database is away everything would be thrown away as if it could not be written."""

    async def write(items: Sequence[int]) -> None:
        raise DatabaseUnavailable

    with pytest.raises(DatabaseUnavailable):
        await write_each(write, [1, 2, 3])


async def test_a_status_that_cannot_be_kept_keeps_no_other(database: str) -> None:
    """The server would end, or never again write who is there."""
    async with running_core(database) as core:
        presence, _ = presence_on(core, LocalBus(), ManualClock())
        for user, status in ((ALICE, "here"), (BOB, BAD), (CAROL, "here")):
            await presence.set(user, "PHONE", "online", status)
        await presence.flush()
        store = PresenceStore(core.database)
        assert [await store.get(user) is not None for user in (ALICE, BOB, CAROL)] == [True, False, True]


async def test_a_user_who_cannot_be_told_of_is_in_nobodys_way(database: str) -> None:
    """From then on nobody would ever go offline."""
    bus, clock = StubbornBus(), ManualClock()
    async with running_core(database, bus=bus) as core:
        presence, states = presence_on(core, bus, clock)
        for user in (ALICE, BOB, CAROL):
            await sync_once(presence, user, "PHONE", "online")
        bus.bad = BOB
        clock.forward(100)
        await presence.settle()
        assert states.present == {BOB}
        await presence.flush()
        returning = ReturningUsers(
            config=CONFIG, states=states, store=PresenceStore(core.database), clock=clock, process="main"
        )
        for user in (ALICE, CAROL):
            await sync_once(presence, user, "PHONE", "online")
        await presence.flush()
        bus.bad = ALICE
        await returning.resume()
        presence._connected.clear()
        clock.forward(100)
        await returning.settle()
        clock.forward(5)
        await returning.settle()
        assert CAROL not in states.present


async def test_a_room_that_cannot_be_told_is_in_no_others_way(database: str) -> None:
    """From then on everybody who ever typed would seem to type for ever."""
    bus, clock = StubbornBus(), ManualClock()
    async with running_core(database, bus=bus) as core:
        typing = TypingUsers(bus=bus, tail=core.tail, memberships=core.memberships, clock=clock)
        rooms = [await core.create_room() for _ in range(3)]
        for room_id in rooms:
            await typing.set(ALICE, room_id, True, 1000)
        bus.bad = rooms[1]
        clock.forward(2)
        await typing.expire()
        assert [len(typists.user_ids) for it in rooms if (typists := typing.of(it))] == [0, 1, 0]


async def test_a_device_that_cannot_be_written_is_in_no_others_way(database: str) -> None:
    """Nobody would see any more when their devices were used, or what was delivered would stay for ever."""
    async with running_core(database) as core:
        devices = make_devices(core)
        await devices.ensure(ALICE, "PHONE", None)
        seen = LastSeen(devices=devices, clock=ManualClock())
        seen.note(Requester(BOB, BAD), "10.0.0.2", "")
        seen.note(Requester(ALICE, "PHONE"), "10.0.0.1", "")
        await seen.write()
        assert (await devices.get(ALICE, "PHONE")).last_seen_ip == "10.0.0.1"
        assert not seen._noted
        inboxes = make_inboxes(core)
        inboxes._acknowledge((BOB, BAD), 7)
        inboxes._acknowledge((ALICE, "PHONE"), 7)
        await inboxes.flush()
        assert not inboxes._acked


async def test_without_a_database_everything_waits(database: str) -> None:
    """What was seen in the minute in which PostgreSQL restarts would be lost, or the server would end."""
    async with running_core(database) as core:
        away = Database({"host": "/nowhere", "user": "nobody", "database": "none"}, size=1)
        presence, _ = presence_on(core, LocalBus(), ManualClock())
        await sync_once(presence, ALICE, "PHONE", "online")
        presence._store = PresenceStore(away)
        await presence.flush()
        presence._store = PresenceStore(core.database)
        await presence.flush()
        assert await PresenceStore(core.database).get(ALICE) is not None
        devices = make_devices(core)
        await devices.ensure(ALICE, "PHONE", None)
        store, devices._store = devices._store, DeviceStore(away)
        seen = LastSeen(devices=devices, clock=ManualClock())
        seen.note(Requester(ALICE, "PHONE"), "10.0.0.1", "")
        await seen.write()
        devices._store = store
        await seen.write()
        assert (await devices.get(ALICE, "PHONE")).last_seen_ip == "10.0.0.1"
        inboxes = make_inboxes(core)
        inboxes._acknowledge((ALICE, "PHONE"), 7)
        inboxes._store._database = away
        async with background(inboxes.run()):
            await asyncio.sleep(0.5)
        assert inboxes._acked == {(ALICE, "PHONE"): 7}
        await away.close()


async def test_what_fails_is_begun_anew_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mistake of ours in a piece of work that nobody waits for would end the server, or fill the disk."""
    clock, pauses, fails_after_s = ManualClock(), list[float](), [0, 0, 0, 1000]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.forward(seconds)

    async def work() -> None:
        if fails_after_s:
            clock.forward(fails_after_s.pop(0))
            raise ExceptionGroup("tasks", [ValueError("a mistake of ours")])

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await persevere(work, "work", clock)
    assert pauses == [1, 2, 4, 1]

    async def lose() -> None:
        raise LeaseLostError("job")

    with pytest.raises(LeaseLostError):
        await persevere(lose, "work", clock)


async def test_one_table_that_cannot_be_swept_leaves_the_others() -> None:
    """Tokens that nobody can use any more would fill the database, unseen."""
    swept: list[str] = []

    class Store:
        def __init__(self, name: str) -> None:
            self.name = name

        async def sweep(self, before: int) -> None:
            if self.name == "bad":
                raise RuntimeError("a mistake of ours")
            swept.append(self.name)

    def sweep(*names: str) -> Any:
        stores: list[Any] = [Store(name) for name in names]
        return Expiry(
            sessions=stores[0], tokens=stores[1], short_lived_tokens=stores[2], clock=ManualClock()
        ).sweep()

    await sweep("bad", "tokens", "short")
    await sweep("sessions", "tokens", "bad")
    assert sorted(swept) == ["sessions", "short", "tokens", "tokens"]
