"""Unread counts and the list of notifications."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from ranvier.log.clock import SystemClock
from ranvier.spec.push_rule_edits import put_rule, set_enabled
from ranvier.storage.account_data import AccountDataStore
from ranvier.storage.push_rules import PushRuleStore
from ranvier.storage.receipts import ReceiptStore
from ranvier.storage.unread import UnreadStore
from ranvier.sync.sections.unread import UnreadCounts
from ranvier.users.account_data import AccountData, IgnoredUsers
from ranvier.users.notes import RoomNotes
from ranvier.users.notifications import Notifications
from ranvier.users.push_rules import PushRules
from ranvier.users.receipts import MAIN, READ, READ_PRIVATE, Mark, Receipts
from ranvier.users.unread import Unread
from ranvier.users.unread_gaps import UnreadGaps
from ranvier.users.unread_tally import Count, Counts
from ranvier.wire.log_rows import EventRow
from tests.core import Core, running_core

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"


@dataclass
class Readers:
    """A core and what counts for its users."""

    core: Core
    receipts: Receipts
    account_data: AccountData
    push_rules: PushRules
    unread: Unread
    notifications: Notifications

    async def counts(self, user_id: str, room_id: str) -> Counts:
        """Give the counts of one room."""
        return (await self.unread.counts(user_id, [room_id]))[room_id]

    async def total(self, user_id: str, room_id: str) -> tuple[int, int]:
        """Give notifications and highlights of one room."""
        return tuple((await self.counts(user_id, room_id)).total)

    async def read(self, user_id: str, event: EventRow, thread: str = "", type: str = READ) -> None:
        """Send a receipt."""
        await self.receipts.mark(user_id, event.room_id, [Mark(type, event.event_id, thread)])

    async def say(self, room_id: str, sender: str, body: str = "hello", **content: Any) -> EventRow:
        """Send a message."""
        content = {"msgtype": "m.text", "body": body, **content}
        return await self.core.writer.write(
            room_id, lambda draft: draft.add(sender=sender, type="m.room.message", content=content)
        )

    async def redact(self, sender: str, target: EventRow) -> None:
        """Redact an event."""
        await self.core.writer.write(
            target.room_id,
            lambda draft: draft.add(
                sender=sender,
                type="m.room.redaction",
                content={"redacts": target.event_id},
                redacts=target,
            ),
        )


@asynccontextmanager
async def running_readers(dsn: str) -> AsyncIterator[Readers]:
    """Run the core with all that counting needs."""
    async with running_core(dsn) as core:
        store = AccountDataStore(core.database)
        account_data = AccountData(store=store, appender=core.appender, tail=core.tail)
        push_rules = PushRules(store=PushRuleStore(core.database), appender=core.appender, tail=core.tail)
        notes = RoomNotes(tail=core.tail, events=core.events)
        parts: dict[str, Any] = {
            "store": UnreadStore(core.database),
            "notes": notes,
            "rooms": core.rooms,
            "memberships": core.memberships,
            "push_rules": push_rules,
            "ignored": IgnoredUsers(store=store, tail=core.tail),
            "tail": core.tail,
        }
        yield Readers(
            core=core,
            receipts=Receipts(
                store=ReceiptStore(core.database),
                events=core.events,
                memberships=core.memberships,
                appender=core.appender,
                tail=core.tail,
                clock=SystemClock(),
                account_data=account_data,
            ),
            account_data=account_data,
            push_rules=push_rules,
            unread=Unread(
                **parts,
                gaps=UnreadGaps(store=parts["store"], events=core.events, notes=notes, tail=core.tail),
            ),
            notifications=Notifications(**parts, events=core.events),
        )


async def shared_room(readers: Readers) -> str:
    """Make a room of Alice, Bob and Carol."""
    room_id = await readers.core.create_room()
    await readers.core.join(room_id, BOB)
    await readers.core.join(room_id, CAROL)
    return room_id


def in_thread(root: EventRow) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.thread", "event_id": root.event_id}}


MENTION = {"m.mentions": {"user_ids": [BOB]}}


async def test_messages_are_counted_until_they_are_read(database: str) -> None:
    """The number on a room would stand still, or never go away."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        assert await readers.total(BOB, room_id) == (0, 0)
        first = await readers.say(room_id, ALICE)
        assert await readers.total(BOB, room_id) == (1, 0)
        mention = await readers.say(room_id, ALICE, **MENTION)
        assert await readers.total(BOB, room_id) == (2, 1)
        assert await readers.total(ALICE, room_id) == (0, 0)
        await readers.read(BOB, first)
        assert await readers.total(BOB, room_id) == (1, 1)
        assert await readers.total(CAROL, room_id) == (2, 0)
        await readers.read(BOB, mention, type=READ_PRIVATE)
        await readers.read(CAROL, mention)
        assert await readers.total(BOB, room_id) == (0, 0)
        assert await readers.total(CAROL, room_id) == (0, 0)
        await readers.say(room_id, ALICE, "a notice", msgtype="m.notice")
        assert await readers.total(BOB, room_id) == (0, 0)


async def test_what_came_before_the_join_is_not_unread(database: str) -> None:
    """Whoever enters a room would be told of hundreds of unread messages."""
    async with running_readers(database) as readers:
        room_id = await readers.core.create_room()
        await readers.say(room_id, ALICE)
        await readers.core.join(room_id, BOB)
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.say(room_id, ALICE)
        await readers.core.writer.write(
            room_id,
            lambda draft: draft.add(
                sender=BOB,
                type="m.room.member",
                state_key=BOB,
                content={"membership": "join", "displayname": "Bob"},
            ),
        )
        assert await readers.total(BOB, room_id) == (1, 0)
    async with running_readers(database) as readers:
        assert await readers.total(BOB, room_id) == (1, 0)
        leave = {"membership": "leave"}
        await readers.core.writer.write(
            room_id,
            lambda draft: draft.add(sender=BOB, type="m.room.member", state_key=BOB, content=leave),
        )
        await readers.say(room_id, ALICE)
        assert await readers.unread.counts(BOB, [room_id]) == {}
        await readers.core.join(room_id, BOB)
        assert await readers.total(BOB, room_id) == (0, 0)


async def test_threads_are_counted_and_read_apart(database: str) -> None:
    """Reading the room would mark threads as read that were never opened, or the reverse."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        root = await readers.say(room_id, ALICE)
        reply = await readers.say(room_id, ALICE, **in_thread(root), **MENTION)
        edit_of_reply = {"rel_type": "org.example.aside", "event_id": reply.event_id}
        indirect = await readers.say(room_id, CAROL, **{"m.relates_to": edit_of_reply})
        last = await readers.say(room_id, ALICE)
        counts = await readers.counts(BOB, room_id)
        assert counts == Counts(Count(4, 1), Count(2, 0), {root.event_id: Count(2, 1)})
        shown = UnreadCounts(counts)
        assert orjson.loads(b"{%b}" % b",".join(shown.parts(threads=False))) == {
            "unread_notifications": {"notification_count": 4, "highlight_count": 1}
        }
        assert orjson.loads(b"{%b}" % b",".join(shown.parts(threads=True))) == {
            "unread_notifications": {"notification_count": 2, "highlight_count": 0},
            "unread_thread_notifications": {root.event_id: {"notification_count": 2, "highlight_count": 1}},
        }
        await readers.read(BOB, last, MAIN)
        assert (await readers.counts(BOB, room_id)).main == Count(0, 0)
        await readers.read(BOB, reply, root.event_id)
        assert (await readers.counts(BOB, room_id)).threads == {root.event_id: Count(1, 0)}
        await readers.read(BOB, indirect, root.event_id)
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.say(room_id, ALICE, **in_thread(root))
        # an unthreaded receipt reads everything, threads too
        await readers.read(BOB, await readers.say(room_id, ALICE))
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.read(CAROL, root)
        assert await readers.total(CAROL, room_id) == (3, 0)


async def test_who_answers_has_read(database: str) -> None:
    """A room would stay unread although the user answers in it."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        root = await readers.say(room_id, ALICE)
        await readers.say(room_id, ALICE, **in_thread(root))
        await readers.say(room_id, BOB)
        counts = await readers.counts(BOB, room_id)
        assert (counts.main, counts.threads) == (Count(0, 0), {root.event_id: Count(1, 0)})
        await readers.say(room_id, BOB, **in_thread(root))
        assert await readers.total(BOB, room_id) == (0, 0)


async def test_what_is_redacted_or_ignored_is_not_unread(database: str) -> None:
    """A room would be marked as unread with nothing in it to read."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        counted = await readers.say(room_id, ALICE)
        assert await readers.total(BOB, room_id) == (1, 0)
        await readers.redact(ALICE, counted)
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.redact(ALICE, await readers.say(room_id, ALICE))
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.say(room_id, CAROL)
        assert await readers.total(BOB, room_id) == (1, 0)
        await readers.account_data.set(BOB, "m.ignored_user_list", {"ignored_users": {CAROL: {}}})
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.say(room_id, CAROL)
        assert await readers.total(BOB, room_id) == (0, 0)


async def test_changed_rules_take_effect(database: str) -> None:
    """A room that was muted would go on counting."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        await readers.say(room_id, ALICE, "there is cake")
        assert await readers.total(BOB, room_id) == (1, 0)
        await readers.push_rules.edit(
            BOB,
            lambda rules: put_rule(
                rules,
                "content",
                "cake",
                {"pattern": "cake", "actions": ["notify", {"set_tweak": "highlight"}]},
            ),
        )
        assert await readers.total(BOB, room_id) == (1, 1)
        await readers.push_rules.edit(BOB, lambda it: put_rule(it, "override", room_id, {"actions": []}))
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.push_rules.edit(
            BOB, lambda it: set_enabled(it, "override", room_id, {"enabled": False})
        )
        assert await readers.total(BOB, room_id) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
async def test_a_restart_changes_no_count(database: str, seed: int) -> None:
    """After a restart, or on another worker, rooms would show other numbers."""
    choose = random.Random(seed)
    async with running_readers(database) as readers, running_readers(database) as other:
        rooms = [await shared_room(readers) for _ in range(3)]
        said: dict[str, list[EventRow]] = {room_id: [] for room_id in rooms}
        for _ in range(60):
            room_id, user = choose.choice(rooms), choose.choice([ALICE, BOB, CAROL])
            events = said[room_id]
            action = choose.random()
            if events and action < 0.25:
                thread = choose.choice(["", MAIN])
                event = choose.choice(events)
                if event.relation is not None:
                    thread = choose.choice(["", event.relation[0]])
                await readers.read(user, event, thread, choose.choice([READ, READ_PRIVATE]))
            elif events and action < 0.32:
                await readers.redact(ALICE, choose.choice(events))
            elif events and action < 0.5:
                root = choose.choice([it for it in events if it.relation is None])
                events.append(await readers.say(room_id, user, **in_thread(root)))
            else:
                extra = MENTION if choose.random() < 0.3 else {}
                events.append(await readers.say(room_id, user, **extra))
            if choose.random() < 0.5:
                await readers.unread.counts(choose.choice([ALICE, BOB, CAROL]), rooms)
                await other.unread.counts(BOB, [choose.choice(rooms)])
            if choose.random() < 0.1:
                # as if the log had gone on by more than is kept in memory
                readers.core.tail.reset(readers.core.tail.pos)
        warm = {user: await readers.unread.counts(user, rooms) for user in (ALICE, BOB, CAROL)}
        assert await other.core.tail.wait_for(readers.core.tail.pos, 10)
        assert await other.unread.counts(BOB, rooms) == warm[BOB]
    async with running_readers(database) as readers:
        readers.core.tail.reset(readers.core.tail.pos)
        for user, counts in warm.items():
            assert await readers.unread.counts(user, rooms) == counts


async def test_many_unread_events_are_all_counted(database: str) -> None:
    """A lively room would show fewer unread messages after a restart, or to who was away for a while."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        root = await readers.say(room_id, ALICE)
        first = await readers.say(room_id, ALICE, **MENTION)
        assert await readers.total(BOB, room_id) == (2, 1)
        for n in range(450):
            await readers.say(room_id, ALICE, **(in_thread(root) if n % 3 == 0 else {}))
        expected = Counts(Count(452, 1), Count(302, 1), {root.event_id: Count(150, 0)})
        assert await readers.counts(BOB, room_id) == expected
        assert await readers.counts(CAROL, room_id) == expected._replace(
            total=Count(452, 0), main=Count(302, 0)
        )
        await readers.unread.keeping.flush()
    async with running_readers(database) as readers:
        readers.core.tail.reset(readers.core.tail.pos)
        assert await readers.counts(BOB, room_id) == expected
        await readers.redact(ALICE, first)
        for _ in range(30):
            await readers.say(room_id, ALICE)
        assert await readers.total(BOB, room_id) == (481, 0)
    async with running_readers(database) as readers:
        readers.core.tail.reset(readers.core.tail.pos)
        assert await readers.total(BOB, room_id) == (481, 0)
        rows = await readers.core.database.fetch("SELECT user_id FROM unread_tallies ORDER BY user_id")
        assert [row["user_id"] for row in rows] == [BOB, CAROL]
        # by other rules it is counted anew, without what was written by the old ones
        rule = {"actions": []}
        await readers.push_rules.edit(BOB, lambda it: put_rule(it, "override", room_id, rule))
        assert await readers.total(BOB, room_id) == (0, 0)
        await readers.push_rules.edit(
            BOB, lambda it: set_enabled(it, "override", room_id, {"enabled": False})
        )
        assert await readers.total(BOB, room_id) == (481, 0)
        await readers.read(BOB, root, root.event_id)
        await readers.read(BOB, await readers.say(room_id, ALICE), MAIN)
        assert await readers.total(BOB, room_id) == (150, 0)
    async with running_readers(database) as readers:
        readers.core.tail.reset(readers.core.tail.pos)
        assert await readers.total(BOB, room_id) == (150, 0)
        leave = {"membership": "leave"}
        await readers.core.writer.write(
            room_id, lambda draft: draft.add(sender=BOB, type="m.room.member", state_key=BOB, content=leave)
        )
        await readers.core.join(room_id, BOB)
        assert await readers.total(BOB, room_id) == (0, 0)


async def test_counting_is_bounded(database: str) -> None:
    """One user with a very long backlog would keep a worker busy for everybody else."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ranvier.users.unread_gaps.MAX_IN_ROOM", 50)
            for _ in range(300):
                await readers.say(room_id, ALICE)
            assert await readers.total(BOB, room_id) == (250, 0)


async def test_what_is_held_is_bounded(database: str) -> None:
    """Many users with many unread rooms would fill the server's memory."""
    async with running_readers(database) as readers:
        room_id = await shared_room(readers)
        readers.unread._max_weight = 30
        for _ in range(20):
            await readers.say(room_id, ALICE)
            for user in (ALICE, BOB, CAROL):
                await readers.counts(user, room_id)
        held = readers.unread._users.values()
        assert readers.unread._size.weight == sum(it.weight for user in held for it in user.values())
        assert len(readers.unread._users) < 3
        assert await readers.total(BOB, room_id) == (20, 0)
        readers.unread._notes._max_notes = 10
        other_room = await shared_room(readers)
        await readers.say(other_room, ALICE)
        await readers.counts(BOB, other_room)
        assert await readers.total(BOB, room_id) == (20, 0)
        held_notes = readers.unread._notes._rooms.values()
        assert readers.unread._notes._held == sum(len(room.notes) for room in held_notes)


async def test_the_list_of_notifications(database: str) -> None:
    """A user who asks what they missed would be told nothing, or somebody else's messages."""
    async with running_readers(database) as readers:
        rooms = [await shared_room(readers) for _ in range(2)]
        elsewhere = await readers.core.create_room()
        said: list[EventRow] = []
        for n in range(12):
            said.append(await readers.say(rooms[n % 2], ALICE, **(MENTION if n % 3 == 0 else {})))
            await readers.say(elsewhere, ALICE)
            await readers.say(rooms[0], BOB, msgtype="m.notice")
        await readers.read(BOB, said[7])
        await readers.read(BOB, said[6])
        ids: list[str] = []
        before: int | None = None
        while True:
            page = await readers.notifications.page(BOB, before=before, limit=5)
            ids += [it.row.event_id for it in page.notifications]
            for it in page.notifications:
                assert it.actions[0] == "notify"
                assert it.read is (it.row.pos <= said[7].pos)
            if page.next_pos is None:
                break
            before = page.next_pos
        assert ids == [event.event_id for event in reversed(said)]
        highlights = await readers.notifications.page(BOB, only_highlights=True)
        assert [it.row.event_id for it in highlights.notifications] == [
            said[n].event_id for n in (9, 6, 3, 0)
        ]
        assert (await readers.notifications.page(ALICE)).notifications == []
