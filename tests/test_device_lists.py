"""Whose keys changed, on a real database: the tail and the database say the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ranvier.storage.device_lists import DeviceListStore
from ranvier.users.device_lists import DeviceLists
from tests.core import Core, running_core
from tests.test_cross_signing import Gate, make_cross_signing
from tests.test_cross_signing import alice as alice_identity
from tests.test_cross_signing import bob as bob_identity
from tests.test_devices import make_devices
from tests.test_keys import identity, make_keys

ALICE, BOB, CAROL, DAVE = (f"@{name}:example.org" for name in ("alice", "bob", "carol", "dave"))


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core with devices."""
    async with running_core(database) as running:
        for user_id in (ALICE, BOB, CAROL, DAVE):
            await make_devices(running).ensure(user_id, "D", None)
        yield running


def make_lists(core: Core) -> DeviceLists:
    return DeviceLists(
        store=DeviceListStore(core.database),
        events=core.events,
        memberships=core.memberships,
        rooms=core.rooms,
        tail=core.tail,
    )


async def changes(core: Core, lists: DeviceLists, user_id: str, after: int) -> tuple[set[str], set[str]]:
    """Give what changed; it must be the same from the tail and from the database."""
    from_tail = await lists.since(user_id, after)
    start, core.tail.start = core.tail.start, 1 << 60
    from_database = await lists.since(user_id, after)
    core.tail.start = start
    assert from_tail == from_database
    return from_tail


async def new_keys(core: Core, user_id: str, key: str) -> None:
    await make_keys(core).upload(user_id, "D", device_keys=identity(user_id, "D", key=key))


async def member(core: Core, room_id: str, user_id: str, membership: str, **more: str) -> None:
    content = {"membership": membership, **more}
    await core.writer.write(
        room_id,
        lambda draft: draft.add(sender=user_id, type="m.room.member", state_key=user_id, content=content),
    )


async def test_new_keys_of_people_one_shares_a_room_with(core: Core) -> None:
    """A message would not be encrypted for somebody's new device; or all would ask about strangers."""
    lists = make_lists(core)
    room_id = await core.create_room(ALICE)
    await core.join(room_id, BOB)
    before = core.tail.pos
    for user_id in (ALICE, BOB, CAROL):
        await new_keys(core, user_id, "one")
    assert await changes(core, lists, ALICE, before) == ({ALICE, BOB}, set())
    assert await changes(core, lists, CAROL, before) == ({CAROL}, set())
    assert await changes(core, lists, ALICE, core.tail.pos) == (set(), set())
    before = core.tail.pos
    await make_devices(core).rename(BOB, "D", "phone")
    await make_devices(core).delete(BOB, ["D"])
    assert await changes(core, lists, ALICE, before) == ({BOB}, set())


async def test_who_comes_and_goes(core: Core) -> None:
    """Somebody who joins would get no keys, and who left would be followed for ever."""
    lists = make_lists(core)
    room_id = await core.create_room(ALICE)
    before = core.tail.pos
    await core.join(room_id, BOB)
    assert await changes(core, lists, ALICE, before) == ({BOB}, set())
    assert (await changes(core, lists, BOB, before))[0] == {ALICE}
    before = core.tail.pos
    await core.join(room_id, CAROL)
    await member(core, room_id, BOB, "leave")
    assert await changes(core, lists, ALICE, before) == ({CAROL}, {BOB})
    assert await changes(core, lists, BOB, before) == (set(), {ALICE, CAROL})


async def test_who_stays_in_another_room_is_not_lost(core: Core) -> None:
    """Leaving one of two rooms would stop the encryption for its members in the other."""
    lists = make_lists(core)
    one, two = await core.create_room(ALICE), await core.create_room(ALICE)
    for room_id in (one, two):
        await core.join(room_id, BOB)
    await core.join(one, CAROL)
    before = core.tail.pos
    await member(core, one, ALICE, "leave")
    assert await changes(core, lists, ALICE, before) == (set(), {CAROL})
    assert await changes(core, lists, BOB, before) == (set(), set())
    assert await changes(core, lists, CAROL, before) == (set(), {ALICE})


async def test_a_new_name_is_no_new_device(core: Core) -> None:
    """Each change of a name would make everybody ask for keys."""
    lists = make_lists(core)
    room_id = await core.create_room(ALICE)
    await core.join(room_id, BOB)
    before = core.tail.pos
    await member(core, room_id, BOB, "join", displayname="Bob")
    await member(core, room_id, BOB, "join", displayname="Bobby")
    assert await changes(core, lists, ALICE, before) == (set(), set())
    fresh = make_lists(core)  # a process that was started just now
    assert await changes(core, fresh, ALICE, before) == (set(), set())


async def test_coming_and_going_within_one_answer(core: Core) -> None:
    """Somebody who was there between two syncs would be followed for ever, or not be known."""
    lists = make_lists(core)
    room_id = await core.create_room(ALICE)
    await core.join(room_id, DAVE)
    before = core.tail.pos
    await core.join(room_id, BOB)
    await member(core, room_id, BOB, "leave")
    await member(core, room_id, DAVE, "leave")
    await core.join(room_id, DAVE)
    changed, left = await changes(core, lists, ALICE, before)
    assert BOB not in changed
    assert DAVE not in left
    before = core.tail.pos
    await core.join(room_id, CAROL)
    await member(core, room_id, ALICE, "leave")
    await core.join(room_id, BOB)
    changed, left = await changes(core, lists, ALICE, before)
    assert changed == set()
    assert {DAVE, CAROL} <= left


async def test_signing_somebody_tells_ones_own_devices_only(core: Core) -> None:
    """Having verified somebody would not show on one's other devices; or they would be told."""
    lists, cross_signing = make_lists(core), make_cross_signing(core)
    await cross_signing.upload(ALICE, alice_identity.keys, Gate())
    await cross_signing.upload(BOB, bob_identity.keys, Gate())
    room_id = await core.create_room(ALICE)
    await core.join(room_id, BOB)
    before = core.tail.pos
    signed = alice_identity.sign(bob_identity.key("master"), "user_signing")
    assert await cross_signing.sign(ALICE, {BOB: {bob_identity.public("master"): signed}}) == {}
    assert await changes(core, lists, ALICE, before) == ({BOB}, set())
    assert await changes(core, lists, BOB, before) == (set(), set())
