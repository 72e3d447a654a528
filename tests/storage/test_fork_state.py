"""States of a room from the database: snapshots, their sharing, and resolution of large ones."""

from __future__ import annotations

from ranvier.rooms.fork_state import state_after, stored_state
from tests.core import Core, running_core
from tests.remote_server import RemoteServer, new_receiver
from tests.test_import_room import import_into
from tests.test_receive_event import ALICE, BOB, CAROL, ends_of, shared_room, state_of


async def snapshots(core: Core) -> int:
    """Count the stored snapshots."""
    count: int = await core.database.fetchval("SELECT count(*) FROM snapshots")
    return count


async def test_equal_states_share_a_snapshot(database: str) -> None:
    """A conversation in a forked room would fill the disk with copies of its state."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 100, CAROL: 100})
        one = remote.topic(BOB, "one", after=[start])
        two = remote.topic(CAROL, "two", after=[start])
        first = remote.message(BOB, "on one branch", after=[one])
        second = remote.message(CAROL, "on the other", after=[two])
        await remote.send_accepted(receiver, start, one, two, first, second)
        before = await snapshots(core)
        for n in range(10):
            first = remote.message(BOB, f"left {n}", after=[first])
            second = remote.message(CAROL, f"right {n}", after=[second])
            await remote.send_accepted(receiver, first, second)
        assert await snapshots(core) == before
        assert await ends_of(core, remote.room_id) == {first.event_id, second.event_id}


async def test_long_branches_are_read_back_right(database: str) -> None:
    """The state of an old place of the room, and so who may see and say what there, would be wrong."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 100, CAROL: 100})
        await remote.send_accepted(receiver, start)
        left = right = start
        for n in range(60):  # more than there are steps between two full copies
            left = remote.make(BOB, "org.test", {"n": n}, state_key=f"l{n % 7}", after=[left])
            right = remote.make(CAROL, "org.test", {"n": n}, state_key=f"r{n % 7}", after=[right])
            await remote.send_accepted(receiver, left, right)
        rows = await core.events.by_ids([left.event_id, right.event_id])
        for event in (left, right):
            nids = await core.forks.nids_of(state_after(rows[event.event_id]))
            found = await core.events.by_nids(nids)
            assert {r.key: r.event_id for r in found.values()} == remote.after[event.event_id]
        assert await state_of(core, remote.room_id) == remote.state([left.event_id, right.event_id])
        steps = await core.database.fetchval("SELECT max(steps) FROM snapshots")
        assert steps < 64


async def test_resolution_does_not_depend_on_what_is_in_memory(database: str) -> None:
    """A worker that was just started would see another room than one that runs for long."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 60, CAROL: 50})
        one = remote.power(ALICE, {ALICE: 100, BOB: 60}, after=[start])
        two = remote.topic(CAROL, "two", after=[start])
        await remote.send_accepted(receiver, start, two)
        await remote.send_accepted(receiver, one)
        warm = await state_of(core, remote.room_id)
        rows = await core.events.by_ids([one.event_id, two.event_id])
        async with running_core(database) as cold:
            room = await cold.rooms.get(remote.room_id)
            states = [state_after(row) for row in rows.values()]
            resolved = await cold.forks.resolve(room.version, states, current={}, fresh={})
            found = await cold.events.by_nids(await cold.forks.nids_of(resolved))
            assert {row.key: row.event_id for row in found.values()} == warm


async def test_a_large_fork_is_resolved_beside_the_event_loop(database: str) -> None:
    """Everybody would wait while two halves of a large room come together."""
    remote = RemoteServer.create(BOB, "11")
    async with running_core(database) as core:
        await import_into(core, remote, remote.member(ALICE, ALICE, "join"))
        receiver = new_receiver(core)
        start = remote.message(BOB, "hello")
        await remote.send_accepted(receiver, start)
        branches = []
        for half in range(2):
            last = start
            for n in range(70):
                last = remote.make(BOB, "org.test", {"half": half}, state_key=str(n), after=[last])
                await remote.send_accepted(receiver, last)
            branches.append(last)
        assert await state_of(core, remote.room_id) == remote.state([e.event_id for e in branches])
        room = await core.rooms.get(remote.room_id)
        shared = await core.forks.nids_of(stored_state(room.snapshot_nid))
        assert len(shared) == len(room.state)
