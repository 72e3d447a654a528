"""The log on a real PostgreSQL: order, no gaps, room heads, transaction ids."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from ranvier.log.bus import LocalBus
from ranvier.rooms.append_event import Action, AlreadySent
from ranvier.rooms.draft import Draft, Txn
from ranvier.rooms.room import Room
from ranvier.rooms.transactions import Transactions
from ranvier.spec.errors import MatrixError
from ranvier.storage.log import rows_between
from ranvier.storage.transactions import TransactionStore
from ranvier.wire.log_rows import EventRow
from tests.core import running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


@pytest.mark.parametrize("version", [str(v) for v in range(1, 13)])
async def test_a_room_of_every_version_takes_messages(database: str, version: str) -> None:
    """In some room version, nobody could talk, or the room would be gone after a restart."""
    async with running_core(database) as core:
        room_id = await core.create_room(version=version)
        await core.join(room_id, BOB)
        sent = await core.send(room_id, BOB, "hello")
        assert sent.pos == core.tail.pos
        core.rooms.drop(room_id)
        room = await core.rooms.get(room_id)
        assert room.joined == {ALICE, BOB}
        assert [row.event_id for row in room.extremities] == [sent.event_id]
        again = await core.send(room_id, ALICE, "and again")
        assert again.event.prev_event_ids == [sent.event_id]


async def test_positions_have_no_gaps_under_load(database: str) -> None:
    """A client's sync would skip a message for ever."""
    async with running_core(database) as core:
        rooms = [await core.create_room() for _ in range(5)]
        start = core.tail.pos
        async with asyncio.TaskGroup() as tasks:
            for n in range(100):
                tasks.create_task(core.send(rooms[n % 5], ALICE, str(n)))
        assert core.tail.pos == start + 100
        stored = await core.database.fetch("SELECT pos FROM events WHERE pos > $1 ORDER BY pos", start)
        assert [record["pos"] for record in stored] == list(range(start + 1, start + 101))


async def test_who_goes_away_takes_no_write_back(database: str) -> None:
    """A message that was on its way when its client lost the connection would be lost, or others with it."""
    async with running_core(database) as core:
        room_id = await core.create_room()
        start = core.tail.pos
        sending = [asyncio.create_task(core.send(room_id, ALICE, str(n))) for n in range(60)]
        await asyncio.sleep(0)  # all of them wait for the room now
        for task in sending[::3]:
            task.cancel()
        results = await asyncio.gather(*sending, return_exceptions=True)
        last = await core.send(room_id, ALICE, "after")
        assert last.pos == start + 61
        gone = [n for n, result in enumerate(results) if isinstance(result, asyncio.CancelledError)]
        assert gone == list(range(0, 60, 3))
        room = await core.rooms.get(room_id)
        timeline = await core.events.forwards(room.room_nid, after=start, upto=1 << 60, limit=100)
        assert [row.content["body"] for row in timeline] == [*(str(n) for n in range(60)), "after"]


async def test_two_writers_on_one_room_make_one_history(database: str) -> None:
    """Two workers that write to one room at once would lose or fork its messages."""
    async with running_core(database) as one, running_core(database) as two:
        room_id = await one.create_room()
        async with asyncio.TaskGroup() as tasks:
            for n in range(40):
                tasks.create_task((one if n % 2 else two).send(room_id, ALICE, str(n)))
        room = await one.rooms.get(room_id)
        timeline = await one.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=100)
        assert len(timeline) == 44
        for before, after in pairwise(timeline):
            assert after.event.prev_event_ids == [before.event_id]


async def test_who_writes_has_it_told_first_what_others_hold_back(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other workers would read what came before a message from the database, and forget rooms with it."""
    bus, done = LocalBus(), list[str]()
    monkeypatch.setattr(bus, "attend", lambda: done.append("attend"))
    async with running_core(database, bus=bus) as core:
        room_id = await core.create_room()
        commit = core.appender._write

        async def write(batch: Any) -> Any:
            done.append("commit")
            return await commit(batch)

        monkeypatch.setattr(core.appender, "_write", write)
        done.clear()
        await core.send(room_id, "@alice:example.org", "hello")
    assert done[:2] == ["attend", "commit"]


async def test_a_follower_reads_what_the_bus_did_not_bring(database: str) -> None:
    """When Redis loses a message, clients of another worker would never see what was said."""
    async with running_core(database) as one, running_core(database) as two:
        room_id = await one.create_room()
        sent = await one.send(room_id, ALICE, "over there")
        assert await two.tail.wait_for(sent.pos, 10)
        rows = two.tail.events_of_room(room_id, 0)
        assert rows[-1].event_id == sent.event_id
        assert [row.state_changes for row in rows[:2]] == [
            (("m.room.create", ""),),
            (("m.room.member", ALICE),),
        ]


async def test_a_repeated_transaction_gets_the_first_answer(database: str) -> None:
    """A client that retries after a lost answer, and after a restart, would say everything twice."""
    txn = Txn(ALICE, "PHONE", "send", "t1")
    async with running_core(database) as core:
        room_id = await core.create_room()
        first = await core.send(room_id, ALICE, "once", txn=txn)
    async with running_core(database) as core:
        with pytest.raises(AlreadySent) as caught:
            await core.writer.write(
                room_id,
                lambda draft: draft.add(sender=ALICE, type="m.room.message", content={"body": "once"}),
                txn,
            )
        assert caught.value.event_id == first.event_id
        assert isinstance(core.tail.rows_since(0)[-1], EventRow)
        assert core.tail.pos == first.pos


async def test_a_retry_after_its_worker_died_is_followed_by_nobody_who_does_not_see_it(database: str) -> None:
    """A client whose worker died would be told that its message was sent, and not find it in the room."""
    txn = Txn(ALICE, "PHONE", "send", "t1")
    told: list[int] = []
    async with running_core(database) as dead, running_core(database, committed=told.append) as other:
        room_id = await dead.create_room()
        await other.rooms.get(room_id)
        first = await dead.send(room_id, ALICE, "once", txn=txn)  # its bus tells nobody else
        with pytest.raises(AlreadySent):
            await other.writer.write(
                room_id,
                lambda draft: draft.add(sender=ALICE, type="m.room.message", content={"body": "once"}),
                txn,
            )
        assert first.pos in told


@pytest.mark.parametrize("txn", [None, Txn(ALICE, "", "state !a:example.org m.room.topic ", "t1")])
async def test_what_a_process_does_after_it_stood_still_does_not_undo_what_came_since(
    database: str, monkeypatch: pytest.MonkeyPatch, txn: Txn | None
) -> None:
    """A topic that was set and changed again would come back when a frozen worker goes on.

    That it was set is known by the proxy's name for the request only if it was another one before.
    """
    monkeypatch.setattr("ranvier.log.standstill._BEAT_S", 0.01)
    monkeypatch.setattr("ranvier.log.follow._POLL_S", 60.0)  # it reads nothing while it stands still
    async with running_core(database) as frozen, running_core(database) as other:
        room_id = await frozen.create_room()
        for core in (frozen, other):
            await core.rooms.get(room_id)

        def topic(text: str, stands_still_s: float = 0.0) -> Action[EventRow]:
            def act(draft: Draft) -> EventRow:
                time.sleep(stands_still_s)
                return draft.add(sender=ALICE, type="m.room.topic", state_key="", content={"topic": text})

            return act

        newest = await other.writer.write(room_id, topic("newer"))
        monkeypatch.setattr("ranvier.log.standstill.LONGEST_S", 0.05)
        with pytest.raises(MatrixError) as refused:
            await frozen.writer.write(room_id, topic("older", stands_still_s=0.1), txn)
        assert refused.value.status == 503
        assert await frozen.tail.wait_for(newest.pos)
        topics = [row for row in frozen.tail.events_of_room(room_id, 0) if row.type == "m.room.topic"]
        assert [row.content["topic"] for row in topics] == ["newer"]


async def test_who_was_banned_elsewhere_says_no_more(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was banned would write on by a worker that hears of it late, and history forget the ban."""
    async with running_core(database) as one, running_core(database) as two:
        room_id = await one.create_room()
        await one.join(room_id, BOB)
        await two.rooms.get(room_id)
        find, bans = one.rooms.find, list[EventRow]()

        async def find_and_be_overtaken(wanted: str) -> Room | None:
            room = await find(wanted)
            if not bans:
                ban = {"membership": "ban"}
                bans.append(
                    await two.writer.write(
                        room_id,
                        lambda draft: draft.add(
                            sender=ALICE, type="m.room.member", state_key=BOB, content=ban
                        ),
                    )
                )
                # Read from the database, it does not say all that a room has to know.
                assert await one.tail.wait_for(bans[0].pos)
            return room

        monkeypatch.setattr(one.rooms, "find", find_and_be_overtaken)
        with pytest.raises(MatrixError) as refused:
            await one.send(room_id, BOB, "still here")
        assert refused.value.status == 403
        after = await one.send(room_id, ALICE, "well")
        assert after.event.prev_event_ids == [bans[0].event_id]


async def test_what_was_redacted_twice_stays_redacted(database: str) -> None:
    """What two moderators removed at once would be shown again after a restart."""
    async with running_core(database) as core:
        room_id = await core.create_room()
        said = await core.send(room_id, ALICE, "oh")
        redactions = [
            await core.writer.write(
                room_id,
                lambda draft: draft.add(sender=ALICE, type="m.room.redaction", content={}, redacts=said),
            )
            for _ in range(2)
        ]
        rows = await rows_between(core.database, said.pos, core.tail.pos)
        assert [row.redacts for row in rows if isinstance(row, EventRow)] == [said.event_id, None]
    async with running_core(database) as core:
        row = core.tail.event(said.event_id)
        assert row is not None
        assert row.redacted_because is not None
        assert row.redacted_because.event_id == redactions[0].event_id


async def test_who_is_refused_a_retry_finds_what_was_sent(database: str) -> None:
    """A client whose worker died would be told that its message was sent, and not find it in the room."""
    txn = Txn(ALICE, "PHONE", "send", "t1")
    told: list[int] = []
    async with running_core(database) as dead, running_core(database, committed=told.append) as other:
        room_id = await dead.create_room()
        first = await dead.send(room_id, ALICE, "once", txn=txn)  # its bus tells nobody else
        transactions = Transactions(
            store=TransactionStore(other.database), appender=other.appender, tail=other.tail
        )

        async def send() -> str:
            raise MatrixError("M_LIMIT_EXCEEDED", 429, "Too many")

        assert await transactions.once(txn, send) == first.event_id
        assert other.tail.event(first.event_id) is not None
        assert first.pos in told


async def test_a_retry_beside_a_request_that_is_broken_off_may_come_again(database: str) -> None:
    """A client would be told of an error of the server, and not that it may try again."""
    txn = Txn(ALICE, "PHONE", "send", "t1")
    async with running_core(database) as core:
        transactions = Transactions(
            store=TransactionStore(core.database), appender=core.appender, tail=core.tail
        )
        begun = asyncio.Event()

        async def send() -> str:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        first = asyncio.create_task(transactions.once(txn, send))
        await begun.wait()
        second = asyncio.create_task(transactions.once(txn, send))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(MatrixError) as refused:
            await second
        assert refused.value.status == 503
