"""Rooms taken over from other servers, and events stored without a place."""

from __future__ import annotations

import pytest

from ranvier.rooms.receive_event import Verdict
from ranvier.spec.errors import MatrixError
from ranvier.spec.event import Event
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.wire.log_rows import EventRow
from tests.core import Core, running_core
from tests.remote_server import RemoteServer, new_importer, new_receiver
from tests.test_receive_event import ALICE, BOB, CAROL, ends_of, state_of


async def import_into(
    core: Core, remote: RemoteServer, join: Event, *, without: frozenset[str] = frozenset()
) -> EventRow:
    """Take a room over by a join of ours."""
    state = remote.state(join.prev_event_ids)
    return await new_importer(core).import_room(
        room_id=remote.room_id,
        version=ROOM_VERSIONS[remote.version_id],
        state=[remote.events[e].pdu for e in state.values() if e not in without],
        auth_chain=[event.pdu for event in remote.auth_chain([*state.values(), join.event_id])],
        latest=join.pdu,
        keys=remote.keys,
    )


def busy_room(version: str) -> RemoteServer:
    """Make a room elsewhere in which something happened."""
    remote = RemoteServer.create(BOB, version)
    for n in range(30):
        remote.member(f"@user{n}:two.test", f"@user{n}:two.test", "join")
    remote.topic(BOB, "busy")
    remote.message(BOB, "hello")
    return remote


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
async def test_a_room_is_joined_and_lived_in(database: str, version: str) -> None:
    """Nobody could join a room of another server, or it would be gone after a restart."""
    remote = busy_room(version)
    async with running_core(database) as core:
        assert not await core.memberships.of(ALICE)
        join = remote.member(ALICE, ALICE, "join")
        row = await import_into(core, remote, join)
        assert core.tail.pos == row.pos
        assert (await core.memberships.of(ALICE))[remote.room_id].pos == row.pos
        assert await state_of(core, remote.room_id) == remote.state([join.event_id])
        sent = await core.send(remote.room_id, ALICE, "hello")
        remote.learn(sent.event)
        await remote.send_accepted(new_receiver(core), remote.message(BOB, "welcome"))
        again = await import_into(core, remote, join)
        assert again.pos == row.pos
    async with running_core(database) as core:
        receiver = new_receiver(core)
        left, right = (remote.topic(BOB, topic, after=[sent.event_id]) for topic in ("left", "right"))
        await remote.send_accepted(receiver, left, right)
        assert await state_of(core, remote.room_id) == remote.state(list(await ends_of(core, remote.room_id)))


async def test_what_does_not_pass_is_not_part_of_the_state(database: str) -> None:
    """A server could hand us a room in which it gave itself all power."""
    remote = busy_room("11")
    state = remote.state(remote.ends())
    stolen = remote.power("@user1:two.test", {"@user1:two.test": 100}, learn=False)
    join = remote.member(ALICE, ALICE, "join")
    async with running_core(database) as core:
        importer = new_importer(core)
        forged = {
            **remote.topic(BOB, "forged", learn=False).pdu,
            "signatures": {"one.test": {"ed25519:1": "AAAA"}},
        }
        levels = state["m.room.power_levels", ""]
        topic = state["m.room.topic", ""]
        pdus = [remote.events[e].pdu for e in state.values() if e not in (levels, topic)]
        auth_chain = [event.pdu for event in remote.auth_chain([*state.values(), join.event_id])]
        await importer.import_room(
            room_id=remote.room_id,
            version=ROOM_VERSIONS["11"],
            state=[*pdus, stolen.pdu, forged],
            auth_chain=auth_chain,
            latest=join.pdu,
            keys=remote.keys,
        )
        room = await core.rooms.get(remote.room_id)
        assert ("m.room.power_levels", "") not in room.state
        assert ("m.room.topic", "") not in room.state


async def test_what_is_no_room_is_refused(database: str) -> None:
    """A broken answer would leave a broken room behind, and the next try could not repair it."""
    remote = busy_room("11")
    state = remote.state(remote.ends())
    join = remote.member(ALICE, ALICE, "join")
    async with running_core(database) as core:
        create = state["m.room.create", ""]
        with pytest.raises(MatrixError, match="no create event"):
            await import_into(core, remote, join, without=frozenset((create,)))
        rules = state["m.room.join_rules", ""]
        with pytest.raises(MatrixError):
            await import_into(core, remote, join, without=frozenset((rules,)))
        assert await core.rooms.find(remote.room_id) is None
        await import_into(core, remote, join)
        assert await state_of(core, remote.room_id) == remote.state([join.event_id])


async def test_a_room_is_joined_again_after_an_absence(database: str) -> None:
    """Who comes back to a room would see it as they left it."""
    remote = busy_room("11")
    async with running_core(database) as core:
        await import_into(core, remote, remote.member(ALICE, ALICE, "join"))
        await remote.send_accepted(new_receiver(core), remote.member(ALICE, ALICE, "leave"))
        remote.topic(BOB, "while you were away")
        remote.member("@user3:two.test", "@user3:two.test", "leave")
        back = remote.member(ALICE, ALICE, "join")
        row = await import_into(core, remote, back)
        assert await state_of(core, remote.room_id) == remote.state([back.event_id])
        assert (await core.memberships.of(ALICE))[remote.room_id].pos == row.pos
        assert set(row.state_changes) == {
            ("m.room.topic", ""),
            ("m.room.member", ALICE),
            ("m.room.member", "@user3:two.test"),
        }


async def test_cited_events_come_as_outliers_first(database: str) -> None:
    """An event that rests on what we never saw could not be judged, or its auth chain had holes."""
    remote = busy_room("11")
    join = remote.member(ALICE, ALICE, "join")
    async with running_core(database) as core:
        await import_into(core, remote, join)
        receiver = new_receiver(core)
        # A branch that we know only by an event that cites it.
        levels = remote.power(BOB, {BOB: 100, CAROL: 50}, after=[join])
        carol = remote.member(CAROL, CAROL, "join", after=[levels])
        topic = remote.topic(CAROL, "by Carol", after=[carol])
        [outcome] = await remote.send(receiver, topic)
        assert outcome.verdict is Verdict.MISSING
        assert outcome.missing == {levels.event_id, carol.event_id}
        stored = await receiver.receive_outliers(remote.room_id, [carol.pdu, levels.pdu], keys=remote.keys)
        assert not stored.rejected
        assert not stored.dropped
        [outcome] = await remote.send(receiver, topic)
        assert outcome.missing == {carol.event_id}  # its place is still not known
        await remote.send_accepted(receiver, levels, carol, topic)
        assert await state_of(core, remote.room_id) == remote.state([topic.event_id])
        found = await core.events.by_ids([levels.event_id])
        assert found[levels.event_id].event_nid == stored.rows[levels.event_id].event_nid
