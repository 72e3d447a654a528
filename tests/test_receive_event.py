"""Events of other servers: received, judged, placed in a history that forks, and resolved."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pyroaring import BitMap64

from ranvier.rooms.draft import Draft
from ranvier.rooms.receive_event import EventReceiver, Verdict, topological
from ranvier.spec.event import StateKey
from ranvier.wire.log_rows import EventRow
from tests.core import Core, running_core
from tests.postgres import fresh_database
from tests.remote_server import RemoteServer, new_receiver

ALICE, BOB, CAROL, DAVE = "@alice:example.org", "@bob:one.test", "@carol:two.test", "@dave:one.test"
VERSIONS = ("1", "2", "6", "10", "11", "12")


@asynccontextmanager
async def shared_room(
    dsn: str, version: str = "11", joined: tuple[str, ...] = (BOB, CAROL)
) -> AsyncIterator[tuple[Core, EventReceiver, RemoteServer]]:
    """Give a room of ours with users of other servers in it."""
    async with running_core(dsn) as core:
        room_id = await core.create_room(version=version)
        remote = await RemoteServer.of_room(core, room_id)
        receiver = new_receiver(core)
        for user in joined:
            await remote.send_accepted(receiver, remote.member(user, user, "join"))
        yield core, receiver, remote


async def state_of(core: Core, room_id: str) -> dict[StateKey, str]:
    """Read the current state anew and compare all that tells of it."""
    held = await core.rooms.get(room_id)
    shown = {key: row.event_id for key, row in held.state.items()}
    core.rooms.drop(room_id)
    room = await core.rooms.get(room_id)
    assert shown == {key: row.event_id for key, row in room.state.items()}
    assert {row.event_id for row in held.extremities} == {row.event_id for row in room.extremities}
    assert held.head == room.head
    snapshot = await core.room_store.snapshot(room.snapshot_nid)
    assert set(snapshot) == {row.event_nid for row in room.state.values()}
    # Following the changes from the beginning leads to the same state.
    nids = await core.room_store.changed_keys(room.room_nid, -1, 1 << 60)
    assert {key: nid for key, nid in nids.items() if nid is not None} == {
        key: row.event_nid for key, row in room.state.items()
    }
    return shown


async def ends_of(core: Core, room_id: str) -> set[str]:
    """Name the ends of a room's history."""
    return {row.event_id for row in (await core.rooms.get(room_id)).extremities}


async def timeline(core: Core, room_id: str) -> list[str]:
    """Name the events of a room that are shown, in order."""
    room = await core.rooms.get(room_id)
    return [r.event_id for r in await core.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=1000)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_conversation_over_two_servers(database: str, version: str) -> None:
    """Users of another server could not join or talk in some room version."""
    async with shared_room(database, version) as (core, receiver, remote):
        hello = remote.message(BOB, "hello")
        await remote.send_accepted(receiver, hello)
        answer = await core.send(remote.room_id, ALICE, "hello yourself")
        assert answer.event.prev_event_ids == [hello.event_id]
        room = await core.rooms.get(remote.room_id)
        assert room.joined == {ALICE, BOB, CAROL}
        remote.learn(answer.event)
        assert await state_of(core, remote.room_id) == remote.state(remote.ends())
        [again] = await remote.send(receiver, hello)
        assert again.verdict is Verdict.KNOWN


@pytest.mark.parametrize("version", VERSIONS)
async def test_two_topics_at_once(database: str, version: str) -> None:
    """Two servers would show different topics for ever."""
    async with shared_room(database, version) as (core, receiver, remote):
        levels = {BOB: 100, CAROL: 100} | ({} if version == "12" else {ALICE: 100})
        start = remote.power(ALICE, levels)
        await remote.send_accepted(receiver, start)
        one = remote.topic(BOB, "one", after=[start])
        two = remote.topic(CAROL, "two", after=[start])
        await remote.send_accepted(receiver, one)
        await remote.send_accepted(receiver, two)
        assert await ends_of(core, remote.room_id) == {one.event_id, two.event_id}
        assert await state_of(core, remote.room_id) == remote.state([one.event_id, two.event_id])
        merged = await core.send(remote.room_id, ALICE, "which is it?")
        assert set(merged.event.prev_event_ids) == {one.event_id, two.event_id}
        remote.learn(merged.event)
        assert await ends_of(core, remote.room_id) == {merged.event_id}
        later = remote.topic(BOB, "three")
        await remote.send_accepted(receiver, later)
        assert await state_of(core, remote.room_id) == remote.state(remote.ends())


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_ban_meets_what_the_banned_one_did(database: str, version: str) -> None:
    """A banned user could undo the ban by an event that was made, or said to be made, before it."""
    async with shared_room(database, version) as (core, receiver, remote):
        levels = {BOB: 50} | ({} if version == "12" else {ALICE: 100})
        start = remote.power(ALICE, levels)
        await remote.send_accepted(receiver, start)
        ban = remote.member(ALICE, BOB, "ban", after=[start])
        evasion = remote.topic(BOB, "I am still here", after=[start])
        await remote.send_accepted(receiver, ban)
        [outcome] = await remote.send(receiver, evasion)
        assert outcome.verdict is Verdict.SOFT_FAILED
        assert evasion.event_id not in await timeline(core, remote.room_id)
        assert await ends_of(core, remote.room_id) == {ban.event_id}
        assert (await core.rooms.get(remote.room_id)).membership_of(BOB) == "ban"
        assert (await core.memberships.of(BOB))[remote.room_id].membership == "ban"
        # A third server that saw the topic first brings both together.
        merge = remote.message(CAROL, "what happened?", after=[ban, evasion])
        await remote.send_accepted(receiver, merge)
        assert await ends_of(core, remote.room_id) == {merge.event_id}
        assert await state_of(core, remote.room_id) == remote.state([merge.event_id])
        assert (await core.rooms.get(remote.room_id)).membership_of(BOB) == "ban"
        if version != "1":  # there the topic comes back, as the specification says it does
            assert ("m.room.topic", "") not in (await core.rooms.get(remote.room_id)).state


async def test_power_levels_on_three_branches(database: str) -> None:
    """After a race of administrators, servers would disagree on who they are."""
    async with shared_room(database, joined=(BOB, CAROL, DAVE)) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 90, CAROL: 80})
        await remote.send_accepted(receiver, start)
        branches = [
            remote.power(ALICE, {ALICE: 100, CAROL: 80}, after=[start]),
            remote.power(BOB, {ALICE: 100, BOB: 90, CAROL: 80, DAVE: 70}, after=[start]),
            remote.topic(CAROL, "mine", after=[start]),
        ]
        kick = remote.member(BOB, CAROL, "leave", after=[branches[1]])
        for event in (*branches, kick):
            await remote.send(receiver, event)
        merge = remote.message(ALICE, "all together", after=[branches[0], kick, branches[2]])
        await remote.send_accepted(receiver, merge)
        expected = remote.state([merge.event_id])
        assert await state_of(core, remote.room_id) == expected
        row = (await core.events.by_ids([merge.event_id]))[merge.event_id]
        assert row.snapshot_nid is not None
        before = await core.events.by_nids(await core.room_store.snapshot(row.snapshot_nid))
        assert {r.key: r.event_id for r in before.values()} == expected


async def test_a_resolved_fork_reaches_caches_and_followers(database: str) -> None:
    """Somebody would go on seeing a member who is gone, or a room that they are banned from."""
    async with (
        shared_room(database, joined=(BOB, CAROL, DAVE)) as (core, receiver, remote),
        running_core(database) as follower,
    ):
        start = remote.power(ALICE, {ALICE: 100, BOB: 50})
        await remote.send_accepted(receiver, start)
        assert await follower.tail.wait_for(core.tail.pos)
        for one in (core, follower):
            assert (await one.memberships.of(DAVE))[remote.room_id].membership == "join"
            assert DAVE in (await one.rooms.get(remote.room_id)).joined
        # Bob bans Dave on a branch on which nothing else happens, and a message merges it.
        topic = remote.topic(ALICE, "meanwhile", after=[start])
        await remote.send_accepted(receiver, topic)
        ban = remote.member(BOB, DAVE, "ban", after=[start])
        await remote.send_accepted(receiver, ban)
        assert await follower.tail.wait_for(core.tail.pos)
        for one in (core, follower):
            assert (await one.memberships.of(DAVE))[remote.room_id].membership == "ban"
            room = await one.rooms.get(remote.room_id)
            assert DAVE not in room.joined
            assert room.content("m.room.topic") == {"topic": "meanwhile"}
            row = one.tail.event(ban.event_id)
            assert row is not None
            assert tuple(row.state_changes) == (("m.room.member", DAVE),)
        assert await state_of(follower, remote.room_id) == await state_of(core, remote.room_id)


async def test_a_fork_that_changes_other_keys_tells_so(database: str) -> None:
    """A change of state that a merge brings would never reach a client's room list."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 50, CAROL: 50})
        await remote.send_accepted(receiver, start)
        topic = remote.topic(BOB, "by Bob", after=[start])
        await remote.send_accepted(receiver, topic)
        assert (await core.memberships.of(BOB))[remote.room_id].membership == "join"
        # Elsewhere, before that topic, Alice takes Bob's power and kicks him: the topic goes.
        demoted = remote.power(ALICE, {ALICE: 100, CAROL: 50}, after=[start])
        await remote.send_accepted(receiver, demoted)
        kick = remote.member(ALICE, BOB, "leave", after=[demoted])
        await remote.send_accepted(receiver, kick)
        room = await core.rooms.get(remote.room_id)
        assert room.membership_of(BOB) == "leave"
        assert await state_of(core, remote.room_id) == remote.state(remote.ends())
        changes = await core.room_store.changed_keys(room.room_nid, 0, 1 << 60)
        assert changes.get(("m.room.topic", "")) is None
        assert ("m.room.topic", "") not in room.state
        assert (await core.memberships.of(BOB))[remote.room_id].membership == "leave"


async def test_late_events_come_at_the_end_of_the_log(database: str) -> None:
    """A message that was under way for long would never be shown, or would unmake what came since."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.message(BOB, "start")
        late = remote.message(CAROL, "late", after=[start])
        await remote.send_accepted(receiver, start)
        for n in range(5):
            row = await core.send(remote.room_id, ALICE, str(n))
            remote.learn(row.event)
        await remote.send_accepted(receiver, late)
        assert (await timeline(core, remote.room_id))[-1] == late.event_id
        assert await ends_of(core, remote.room_id) == {row.event_id, late.event_id}
        merged = await core.send(remote.room_id, ALICE, "both")
        assert set(merged.event.prev_event_ids) == {row.event_id, late.event_id}
        assert await ends_of(core, remote.room_id) == {merged.event_id}


async def test_what_is_refused_is_shown_to_nobody(database: str) -> None:
    """People who may not write in a room could."""
    async with shared_room(database) as (core, receiver, remote):
        before = await timeline(core, remote.room_id)
        state = await state_of(core, remote.room_id)
        rejected = remote.topic(BOB, "not allowed", learn=False)
        stranger = remote.message("@eve:three.test", "let me in", learn=False)
        outcomes = await remote.send(receiver, rejected, stranger)
        assert [outcome.verdict for outcome in outcomes] == [Verdict.REJECTED, Verdict.REJECTED]
        assert await timeline(core, remote.room_id) == before
        assert await state_of(core, remote.room_id) == state
        # Who follows a rejected event is judged as if it had not happened.
        remote.events[rejected.event_id] = rejected
        remote.after[rejected.event_id] = state
        fine = remote.message(CAROL, "never mind", after=[rejected], learn=False)
        wrong = remote.make(
            BOB,
            "m.room.message",
            {},
            after=[rejected],
            auth=[*fine.auth_event_ids, rejected.event_id],
            learn=False,
        )
        outcomes = await remote.send(receiver, fine, wrong)
        assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED, Verdict.REJECTED]
        assert await ends_of(core, remote.room_id) == {fine.event_id}
        assert await state_of(core, remote.room_id) == state


async def test_forged_and_malformed_events_are_dropped(database: str) -> None:
    """Anybody could speak in another's name."""
    async with shared_room(database) as (core, receiver, remote):
        before = await timeline(core, remote.room_id)
        good = [remote.message(BOB, str(n)) for n in range(10)]
        forged = remote.message(BOB, "forged", learn=False).pdu
        forged["signatures"]["one.test"]["ed25519:1"] = "A" * 86
        elsewhere = {**remote.message(BOB, "x", learn=False).pdu, "room_id": "!other:example.org"}
        create = remote.make(BOB, "m.room.create", {}, state_key="", after=[], learn=False).pdu
        sent: list[object] = [forged, elsewhere, create, {"type": 1}, "no event", None]
        outcomes = await receiver.receive(
            remote.room_id, [*(e.pdu for e in good), *sent], origin="one.test", keys=remote.keys
        )
        assert [o.verdict for o in outcomes] == [Verdict.ACCEPTED] * 10 + [Verdict.DROPPED] * 6
        assert await timeline(core, remote.room_id) == before + [event.event_id for event in good]


async def test_a_changed_content_is_cut_out(database: str) -> None:
    """A server on the way could put words into others' mouths."""
    async with shared_room(database) as (core, receiver, remote):
        event = remote.message(BOB, "as it was")
        changed = {**event.pdu, "content": {"body": "as it was not"}, "unsigned": {"age": 1}}
        [outcome] = await receiver.receive(remote.room_id, [changed], origin="one.test", keys=remote.keys)
        assert outcome.verdict is Verdict.ACCEPTED
        assert outcome.event_id == event.event_id
        row = (await core.events.by_ids([event.event_id]))[event.event_id]
        assert row.content == {}
        assert "unsigned" not in row.event.pdu


async def test_what_is_missing_is_named(database: str) -> None:
    """A gap in what came would never be filled, or would break the room."""
    async with shared_room(database) as (core, receiver, remote):
        first, second, third = (remote.message(BOB, str(n)) for n in range(3))
        before = await timeline(core, remote.room_id)
        outcomes = await remote.send(receiver, third, second)
        assert [o.verdict for o in outcomes] == [Verdict.MISSING, Verdict.MISSING]
        assert outcomes[1].missing == {first.event_id}
        assert await timeline(core, remote.room_id) == before
        await remote.send_accepted(receiver, third, second, first)
        assert await timeline(core, remote.room_id) == [
            *before,
            first.event_id,
            second.event_id,
            third.event_id,
        ]


async def test_a_redaction_that_comes_before_its_target(database: str) -> None:
    """What a moderator removed would still be shown, because it arrived late."""
    async with shared_room(database) as (core, receiver, remote):
        rude = remote.message(BOB, "rude", learn=False)
        redaction = remote.make(ALICE, "m.room.redaction", {"redacts": rude.event_id}, redacts=rude.event_id)
        await remote.send_accepted(receiver, redaction)
        await remote.send_accepted(receiver, rude)
        shown = core.tail.event(rude.event_id)
        assert shown is not None
        assert shown.content == {}
        stored = (await core.events.by_ids([rude.event_id]))[rude.event_id]
        assert stored.content == {}
        assert stored.redacted_because is not None
        assert b"rude" not in stored.pdu


async def test_redactions_take_effect(database: str) -> None:
    """What somebody takes back on another server would stay visible here, or anybody could take it back."""
    async with shared_room(database) as (core, receiver, remote):
        mine = await core.send(remote.room_id, ALICE, "by Alice")
        remote.learn(mine.event)
        own = remote.message(BOB, "by Bob")
        await remote.send_accepted(receiver, own)
        for target in (mine.event_id, own.event_id):
            redaction = remote.make(BOB, "m.room.redaction", {"redacts": target}, redacts=target)
            await remote.send_accepted(receiver, redaction)
        stored = await core.events.by_ids([mine.event_id, own.event_id])
        assert stored[mine.event_id].content["body"] == "by Alice"
        assert stored[own.event_id].content == {}


async def test_many_branches_are_brought_together(database: str) -> None:
    """A room that many servers wrote to at once would stay in pieces."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 100, CAROL: 100})
        await remote.send_accepted(receiver, start)
        branches = [
            remote.make(BOB, "org.test", {"n": n}, state_key=f"{n % 5}", after=[start]) for n in range(15)
        ]
        await remote.send_accepted(receiver, *branches)
        assert await ends_of(core, remote.room_id) == {event.event_id for event in branches}
        expected = remote.state([event.event_id for event in branches])
        assert await state_of(core, remote.room_id) == expected
        merged = await core.send(remote.room_id, ALICE, "one room")
        remote.learn(merged.event)
        assert await ends_of(core, remote.room_id) == {merged.event_id}
        assert merged.snapshot_nid is not None
        before = await core.events.by_nids(await core.room_store.snapshot(merged.snapshot_nid))
        assert {row.key: row.event_id for row in before.values()} == expected


async def test_more_branches_than_one_event_can_follow(database: str) -> None:
    """Our own events would be judged differently elsewhere in a room that is in very many pieces."""
    async with shared_room(database) as (core, receiver, remote):
        levels = {ALICE: 100, BOB: 100, CAROL: 50}
        start = remote.power(ALICE, levels)
        await remote.send_accepted(receiver, start)
        branches = [
            remote.make(BOB, "org.test", {"n": n}, state_key=f"{n % 5}", after=[start]) for n in range(29)
        ]
        branches.append(
            remote.make(ALICE, "m.room.topic", {"topic": "one of many"}, state_key="", after=[start])
        )
        await remote.send_accepted(receiver, *branches)

        def add(draft: Draft) -> list[EventRow]:
            return [
                draft.add(sender=ALICE, type="m.room.name", state_key="", content={"name": "one"}),
                draft.add(sender=ALICE, type="m.room.message", content={"body": "two"}),
            ]

        rows = await core.writer.write(remote.room_id, add)
        assert len(rows[0].event.prev_event_ids) == 20
        assert rows[1].event.prev_event_ids == [rows[0].event_id]
        for row in rows:
            remote.learn(row.event)
            assert row.snapshot_nid is not None
            before = await core.events.by_nids(await core.room_store.snapshot(row.snapshot_nid))
            assert {r.key: r.event_id for r in before.values()} == remote.state(row.event.prev_event_ids)
        assert await ends_of(core, remote.room_id) == set(remote.ends())
        assert await state_of(core, remote.room_id) == remote.state(remote.ends())
        last = await core.send(remote.room_id, ALICE, "one room again")
        remote.learn(last.event)
        assert await ends_of(core, remote.room_id) == {last.event_id}
        assert await state_of(core, remote.room_id) == remote.state([last.event_id])


async def test_a_restart_in_the_middle_of_a_fork(database: str) -> None:
    """After a restart a forked room would have lost a branch, or its state."""
    async with shared_room(database) as (core, receiver, remote):
        start = remote.power(ALICE, {ALICE: 100, BOB: 100, CAROL: 100})
        one = remote.topic(BOB, "one", after=[start])
        two = remote.topic(CAROL, "two", after=[start])
        await remote.send_accepted(receiver, start, one, two)
        state = await state_of(core, remote.room_id)
    async with running_core(database) as core:
        receiver = new_receiver(core)
        assert await ends_of(core, remote.room_id) == {one.event_id, two.event_id}
        assert await state_of(core, remote.room_id) == state
        late = remote.topic(CAROL, "three", after=[two])
        await remote.send_accepted(receiver, late)
        merged = await core.send(remote.room_id, ALICE, "merged")
        remote.learn(merged.event)
        assert await state_of(core, remote.room_id) == remote.state([merged.event_id])


async def test_two_processes_receive_and_write_at_once(database: str) -> None:
    """Two workers that take in the same events would store them twice, or lose some."""
    async with (
        shared_room(database) as (one, receiver, remote),
        running_core(database) as two,
    ):
        other = new_receiver(two)
        start = remote.power(ALICE, {ALICE: 100, BOB: 100, CAROL: 100})
        await remote.send_accepted(receiver, start)
        events = [remote.topic(BOB, str(n), after=[start]) for n in range(4)]
        for n in range(12):
            events.append(remote.message(CAROL, str(n), after=[events[n % 4]]))
        banned = remote.member(ALICE, BOB, "ban", after=[start])

        async def receive(core_receiver: EventReceiver, seed: int) -> None:
            shuffled = events[4:]
            random.Random(seed).shuffle(shuffled)
            for piece in (events[:4], shuffled[:5], shuffled[5:], [banned]):
                await remote.send(core_receiver, *piece)

        sent = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(receive(receiver, 1))
            tasks.create_task(receive(other, 2))
            for n in range(20):
                sent.append(
                    tasks.create_task((one if n % 2 else two).send(remote.room_id, ALICE, f"local {n}"))
                )
        ids = await timeline(one, remote.room_id)
        assert len(ids) == len(set(ids))
        assert {task.result().event_id for task in sent} < set(ids)
        assert await one.tail.wait_for(two.tail.pos)
        assert await two.tail.wait_for(one.tail.pos)
        assert await state_of(one, remote.room_id) == await state_of(two, remote.room_id)
        assert await ends_of(one, remote.room_id) == await ends_of(two, remote.room_id)


@pytest.mark.parametrize("version", ["1", "6", "12"])
@pytest.mark.parametrize("seed", range(4))
async def test_the_order_of_arrival_does_not_matter(
    postgres: str, database: str, version: str, seed: int
) -> None:
    """Two servers that got the same events in different orders would show different rooms."""
    rng = random.Random(seed)
    levels = {BOB: 100, CAROL: 100} | ({} if version == "12" else {ALICE: 100})
    async with shared_room(database, version) as (_, receiver, remote):
        await remote.send_accepted(receiver, remote.power(ALICE, levels))
    async with (
        fresh_database(postgres, template=urlsplit(database).path[1:]) as copy,
        running_core(database) as one,
    ):
        await _live_and_replay(one, new_receiver(one), remote, copy, rng, levels)


async def _live_and_replay(
    one: Core,
    receiver: EventReceiver,
    remote: RemoteServer,
    copy: str,
    rng: random.Random,
    levels: dict[str, int],
) -> None:
    known = set(remote.events)
    begin = len(known) - 1  # from when on everybody is in the room and has power
    for n in range(25):
        if rng.random() < 0.2:
            remote.learn((await one.send(remote.room_id, ALICE, f"local {n}")).event)
            continue
        recent = list(remote.events)[begin:][-6:]
        after = rng.sample(recent, min(len(recent), rng.choice((1, 1, 2))))
        sender = rng.choice((BOB, CAROL))
        kind = rng.random()
        if kind < 0.3:
            event = remote.message(sender, str(n), after=after)
        elif kind < 0.8:
            event = remote.topic(sender, str(n), after=after)
        else:
            changed = {**levels, f"@{rng.choice('xyz')}:one.test": rng.randrange(50)}
            event = remote.power(sender, changed, after=after)
        await remote.send_accepted(receiver, event)
        assert await state_of(one, remote.room_id) == remote.state(sorted(await ends_of(one, remote.room_id)))
    new = {event_id: event for event_id, event in remote.events.items() if event_id not in known}
    shuffled = list(new.items())
    rng.shuffle(shuffled)
    async with running_core(copy) as two:
        replica = new_receiver(two)
        ordered = topological(dict(shuffled))
        while ordered:
            size = rng.randrange(1, 8)
            await remote.send_accepted(replica, *ordered[:size])
            del ordered[:size]
        assert await state_of(two, remote.room_id) == await state_of(one, remote.room_id)
        assert await ends_of(two, remote.room_id) == await ends_of(one, remote.room_id)


async def test_auth_chains_of_received_events_are_whole(database: str) -> None:
    """A later resolution would leave out events and so split the room."""
    async with shared_room(database) as (core, receiver, remote):
        await remote.send_accepted(receiver, remote.power(ALICE, {ALICE: 100, BOB: 50}))
        topic = remote.topic(BOB, "topic")
        await remote.send_accepted(receiver, topic)
        wanted: set[str] = set()
        looking = [topic.event_id]
        for event_id in looking:
            cited = remote.events[event_id].auth_event_ids
            wanted.update(cited)
            looking.extend(cited)
        rows = await core.events.by_ids([topic.event_id, *wanted])
        chain = await core.graph.auth_chains([rows[topic.event_id].event_nid])
        [stored] = chain.values()
        assert stored is not None
        assert set(BitMap64.deserialize(stored)) == {rows[event_id].event_nid for event_id in wanted}
