"""Receipts and read markers through the client API, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from ranvier.client_api.receipts import ROUTES
from ranvier.log.bus import LocalBus
from ranvier.log.clock import SystemClock
from ranvier.spec.filters import parse_filter
from ranvier.storage.account_data import AccountDataRow, AccountDataStore, ChangedMeanwhile
from ranvier.storage.database import DatabaseUnavailable
from ranvier.storage.receipts import ReceiptRow, ReceiptStore
from ranvier.sync.context import SyncContext
from ranvier.sync.sections.receipts import ReceiptsSection, receipt_events
from ranvier.users.account_data import AccountData
from ranvier.users.receipts import Mark, Receipts
from ranvier.wire.log_rows import EventRow, LogRow
from ranvier.wire.tokens import Token
from tests.core import Core, running_core
from tests.endpoints import Endpoints, nobody_ignored, room_events, serving, sync_context

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:example.org"


@dataclass
class Scene:
    """Alice's room with Bob in it, and what the tests ask of it."""

    core: Core
    bus: LocalBus
    http: Endpoints
    section: ReceiptsSection
    room_id: str

    async def receipt(
        self, user: str, kind: str, event: EventRow | str, body: Any = None, room_id: str | None = None
    ) -> tuple[int, Any]:
        """Send a receipt."""
        event_id = event if isinstance(event, str) else event.event_id
        path = f"/rooms/{room_id or self.room_id}/receipt/{kind}/{event_id}"
        return await self.http.ask("POST", user, path, body)

    async def told(self, user: str, since: Token | None = None) -> list[Any]:
        """Give what a sync of the user tells of receipts in the room."""
        return await room_events(
            self.section, await sync_context(self.core, self.bus, user, since), self.room_id
        )

    async def now(self, user: str) -> Token:
        """Give the token of a sync at this moment."""
        return (await sync_context(self.core, self.bus, user)).upto

    async def in_thread(self, sender: str, root: EventRow, rel_type: str = "m.thread") -> EventRow:
        """Send an event with a relation."""
        content = {
            "msgtype": "m.text",
            "body": "related",
            "m.relates_to": {"event_id": root.event_id, "rel_type": rel_type},
        }
        return await self.core.writer.write(
            self.room_id, lambda draft: draft.add(sender=sender, type="m.room.message", content=content)
        )


def receipts_of(core: Core) -> tuple[Receipts, ReceiptStore]:
    """Build what there is between the endpoint and the log."""
    store = ReceiptStore(core.database)
    account_data = AccountData(store=AccountDataStore(core.database), appender=core.appender, tail=core.tail)
    receipts = Receipts(
        store=store,
        events=core.events,
        memberships=core.memberships,
        appender=core.appender,
        tail=core.tail,
        clock=SystemClock(),
        account_data=account_data,
    )
    return receipts, store


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    """Serve the endpoints to Alice and Bob."""
    bus = LocalBus()
    async with running_core(database, bus=bus) as core:
        receipts, store = receipts_of(core)
        section = ReceiptsSection(store=store, tail=core.tail, ignored=nobody_ignored)
        room_id = await core.create_room()
        await core.join(room_id, BOB)
        async with serving(ROUTES, {"receipts": receipts}) as http:
            yield Scene(core, bus, http, section, room_id)


def of(events: list[Any], event: EventRow, kind: str, user: str) -> list[Any]:
    """Give the receipts of one user for one event."""
    assert all(e["type"] == "m.receipt" for e in events)
    per_event = [e["content"].get(event.event_id, {}).get(kind, {}).get(user) for e in events]
    return [receipt for receipt in per_event if receipt is not None]


async def test_a_receipt_reaches_everybody_in_the_room(scene: Scene) -> None:
    """Nobody would see that their message was read; or it would show up only after a reload."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    since = await scene.now(BOB)
    assert await scene.receipt(ALICE, "m.read", sent, {}) == (200, {})
    for told in (await scene.told(BOB, since), await scene.told(BOB), await scene.told(ALICE)):
        [receipt] = of(told, sent, "m.read", ALICE)
        assert set(receipt) == {"ts"}
        assert abs(receipt["ts"] - SystemClock().now_ms()) < 60_000
    assert await scene.told(BOB, await scene.now(BOB)) == []


async def test_an_empty_body_is_taken(scene: Scene) -> None:
    """Older clients, which send none, would never mark anything as read."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    assert await scene.receipt(ALICE, "m.read", sent) == (200, {})
    assert of(await scene.told(BOB), sent, "m.read", ALICE)


async def test_a_receipt_never_moves_backwards(scene: Scene) -> None:
    """Reading old messages on a second device would make newer ones unread again."""
    first = await scene.core.send(scene.room_id, BOB, "first")
    second = await scene.core.send(scene.room_id, BOB, "second")
    await scene.receipt(ALICE, "m.read", second)
    since = await scene.now(BOB)
    assert await scene.receipt(ALICE, "m.read", first) == (200, {})
    assert await scene.receipt(ALICE, "m.read", second) == (200, {})
    assert await scene.now(BOB) == since
    assert of(await scene.told(BOB), second, "m.read", ALICE)
    assert not of(await scene.told(BOB), first, "m.read", ALICE)


async def test_receipts_stay_after_a_restart(scene: Scene, database: str) -> None:
    """After a restart of the server everything would be unread, or receipts could go back."""
    first = await scene.core.send(scene.room_id, BOB, "first")
    second = await scene.core.send(scene.room_id, BOB, "second")
    start = await scene.now(BOB)
    await scene.receipt(ALICE, "m.read", second)
    async with running_core(database) as core:
        receipts, store = receipts_of(core)
        before = core.tail.pos
        section = ReceiptsSection(store=store, tail=core.tail, ignored=nobody_ignored)
        async with serving(ROUTES, {"receipts": receipts}) as http:
            path = f"/rooms/{scene.room_id}/receipt/m.read/"
            assert (await http.ask("POST", ALICE, path + first.event_id))[0] == 200
        assert core.tail.pos == before
        core.tail.reset(before)  # nothing is in memory any more: the database must know
        context = await sync_context(core, scene.bus, BOB, start)
        assert not context.in_tail
        assert of(await room_events(section, context, scene.room_id), second, "m.read", ALICE)


async def test_private_receipts_are_for_their_user_alone(scene: Scene) -> None:
    """Others would learn what somebody has read who did not want to tell."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    since_bob, since_alice = await scene.now(BOB), await scene.now(ALICE)
    assert await scene.receipt(ALICE, "m.read.private", sent) == (200, {})
    assert of(await scene.told(ALICE, since_alice), sent, "m.read.private", ALICE)
    assert of(await scene.told(ALICE), sent, "m.read.private", ALICE)
    assert await scene.told(BOB, since_bob) == []
    assert await scene.told(BOB) == []
    scene.core.tail.reset(scene.core.tail.pos)
    assert of(await scene.told(ALICE, since_alice), sent, "m.read.private", ALICE)
    assert await scene.told(BOB, since_bob) == []


async def test_ignored_users_are_not_heard_of(scene: Scene) -> None:
    """Somebody who was ignored would still show up under every message."""

    async def ignored(user_id: str) -> frozenset[str]:
        return frozenset({ALICE} if user_id == BOB else ())

    sent = await scene.core.send(scene.room_id, BOB, "read me")
    since = await scene.now(BOB)
    await scene.receipt(ALICE, "m.read", sent)
    scene.section = ReceiptsSection(
        store=ReceiptStore(scene.core.database), tail=scene.core.tail, ignored=ignored
    )
    assert await scene.told(BOB) == []
    assert await scene.told(BOB, since) == []
    assert await scene.told(ALICE) != []


@pytest.mark.parametrize(
    "definition", [{"not_types": ["m.receipt"]}, {"types": ["m.typing"]}, {"rooms": []}, {"not_types": ["*"]}]
)
async def test_a_filter_leaves_receipts_out(scene: Scene, definition: Any) -> None:
    """A client that wants no receipts would get all of them with every sync."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    since = await scene.now(BOB)
    await scene.receipt(ALICE, "m.read", sent)
    wanted = parse_filter({"room": {"ephemeral": definition}})
    for token in (None, since):
        context = await sync_context(scene.core, scene.bus, BOB, token, wanted)
        assert await room_events(scene.section, context, scene.room_id) == []


async def test_who_is_not_in_the_room_marks_nothing(scene: Scene) -> None:
    """Strangers would show up as readers of a room."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    status, error = await scene.receipt(CAROL, "m.read", sent)
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")
    status, error = await scene.receipt(ALICE, "m.read", sent, room_id="!nowhere:example.org")
    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_the_event_must_be_in_the_room(scene: Scene) -> None:
    """A receipt could point at nothing, or at another room's message."""
    elsewhere = await scene.core.send(await scene.core.create_room(), ALICE, "elsewhere")
    for event_id in (elsewhere.event_id, "$nothing"):
        status, error = await scene.receipt(ALICE, "m.read", event_id)
        assert (status, error["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("thread_id", ["", 5, None, ["main"], "$nothing", "somewhere"])
async def test_wrong_threads_are_refused(scene: Scene, thread_id: Any) -> None:
    """A client's mistake would go unnoticed, and its thread would stay unread for ever."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    status, error = await scene.receipt(ALICE, "m.read", sent, {"thread_id": thread_id})
    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")
    assert await scene.told(BOB) == []


async def test_receipt_types_that_do_not_exist_are_refused(scene: Scene) -> None:
    """A misspelled type would seem to work and mark nothing."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    status, error = await scene.receipt(ALICE, "m.seen", sent)
    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")


async def test_threads_have_receipts_of_their_own(scene: Scene) -> None:
    """Reading a thread would mark the room as read, or the other way round."""
    root = await scene.core.send(scene.room_id, BOB, "root")
    answer = await scene.in_thread(BOB, root)
    reaction = await scene.in_thread(BOB, answer, "m.annotation")
    to_root = await scene.in_thread(BOB, root, "m.annotation")
    in_thread, in_main = {"thread_id": root.event_id}, {"thread_id": "main"}
    for event, body in (
        (root, in_main),
        (answer, in_thread),
        (reaction, in_thread),
        (to_root, in_main),
        (root, in_thread),
    ):
        assert await scene.receipt(ALICE, "m.read", event, body) == (200, {})
    for event, body in ((answer, in_main), (reaction, in_main), (to_root, in_thread)):
        status, error = await scene.receipt(ALICE, "m.read", event, body)
        assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")
    told = await scene.told(BOB)
    assert [r["thread_id"] for r in of(told, reaction, "m.read", ALICE)] == [root.event_id]
    assert [r["thread_id"] for r in of(told, to_root, "m.read", ALICE)] == ["main"]
    assert not of(told, answer, "m.read", ALICE)


async def test_relations_are_followed_three_hops_and_no_further(scene: Scene) -> None:
    """A reaction in a thread could not be marked as read; or a long chain would stall the server."""
    root = await scene.core.send(scene.room_id, BOB, "root")
    event = await scene.in_thread(BOB, root)
    in_thread = {"thread_id": root.event_id}
    for _ in range(3):
        event = await scene.in_thread(BOB, event, "m.reference")
        assert await scene.receipt(ALICE, "m.read", event, in_thread) == (200, {})
    event = await scene.in_thread(BOB, event, "m.reference")
    assert (await scene.receipt(ALICE, "m.read", event, in_thread))[0] == 400


async def test_a_threaded_and_an_unthreaded_receipt_for_one_event_both_arrive(scene: Scene) -> None:
    """One of the two would be lost, and a client would show a thread or the room as unread."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    since = await scene.now(BOB)
    await scene.receipt(ALICE, "m.read", sent, {"thread_id": "main"})
    await scene.receipt(ALICE, "m.read", sent, {})
    for told in (await scene.told(BOB), await scene.told(BOB, since)):
        threads = [r.get("thread_id") for r in of(told, sent, "m.read", ALICE)]
        assert threads == [None, "main"]


def test_receipts_of_a_room_share_one_event() -> None:
    """Each of a thousand readers would cost every client an event of its own."""
    rows = [ReceiptRow("!r", f"@u{n}:x", "m.read", "", f"$e{n % 3}", n, n) for n in range(1000)]
    [event] = [orjson.loads(e) for e in receipt_events(rows)]
    assert sum(len(kinds["m.read"]) for kinds in event["content"].values()) == 1000


async def test_read_markers_set_all_three(scene: Scene) -> None:
    """A client that marks a room as read in one request would have marked only a part."""
    first = await scene.core.send(scene.room_id, BOB, "first")
    second = await scene.core.send(scene.room_id, BOB, "second")
    since = await scene.now(ALICE)
    body = {"m.fully_read": first.event_id, "m.read": first.event_id, "m.read.private": second.event_id}
    answer = await scene.http.ask("POST", ALICE, f"/rooms/{scene.room_id}/read_markers", body)
    assert answer == (200, {})
    told = await scene.told(ALICE, since)
    assert of(told, first, "m.read", ALICE)
    assert of(told, second, "m.read.private", ALICE)
    assert markers(scene, since) == [first.event_id]


async def test_the_fully_read_marker_goes_forward_only(scene: Scene) -> None:
    """Scrolling up would move "you have read up to here" back on every device."""
    first = await scene.core.send(scene.room_id, BOB, "first")
    second = await scene.core.send(scene.room_id, BOB, "second")
    since = await scene.now(ALICE)
    for event in (second, first, second):
        assert await scene.receipt(ALICE, "m.fully_read", event) == (200, {})
    assert markers(scene, since) == [second.event_id]
    assert await scene.told(BOB) == []
    status, error = await scene.receipt(ALICE, "m.fully_read", second, {"thread_id": "main"})
    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")


async def test_read_markers_refuse_what_is_wrong_as_a_whole(scene: Scene) -> None:
    """Half of a refused request would have been done."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    path = f"/rooms/{scene.room_id}/read_markers"
    before = await scene.now(ALICE)
    body = {"m.read": sent.event_id, "m.fully_read": "$nothing"}
    assert (await scene.http.ask("POST", ALICE, path, body))[0] == 404
    status, error = await scene.http.ask("POST", ALICE, path, {"m.read": 5})
    assert (status, error["errcode"]) == (400, "M_BAD_JSON")
    assert await scene.http.ask("POST", ALICE, path, {}) == (200, {})
    assert await scene.now(ALICE) == before


def markers(scene: Scene, since: Token) -> list[str]:
    """Give the event ids that Alice's marker was set to."""
    rows = scene.core.tail.rows_of_user(ALICE, since.pos)
    return [orjson.loads(row.body or b"")["event_id"] for row in rows if row.key == "m.fully_read"]


async def test_a_newcomer_is_told_of_older_receipts(scene: Scene) -> None:
    """Who joins a room would not see who has read what, until each reads on."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    await scene.receipt(ALICE, "m.read", sent)
    since = await scene.now(CAROL)
    await scene.core.join(scene.room_id, CAROL)
    context: SyncContext = await sync_context(scene.core, scene.bus, CAROL, since)
    assert scene.room_id in context.newly_joined
    assert of(await room_events(scene.section, context, scene.room_id), sent, "m.read", ALICE)
    assert (await scene.section.since(context)).get(scene.room_id) is None


async def test_a_marker_that_another_worker_moved_does_not_go_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices that read at once through two workers would find read messages unread again."""
    first, second = [await scene.core.send(scene.room_id, BOB, text) for text in ("first", "second")]
    (slow, _), (fast, _) = receipts_of(scene.core), receipts_of(scene.core)
    read, go_on = asyncio.Event(), asyncio.Event()
    store = AccountDataStore(scene.core.database)
    get = store.get

    async def read_and_wait(*key: str) -> AccountDataRow | None:
        found = await get(*key)
        read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(store, "get", read_and_wait)
    monkeypatch.setattr(slow._account_data, "_store", store)
    late = asyncio.create_task(slow.mark(ALICE, scene.room_id, [Mark("m.fully_read", first.event_id)]))
    await read.wait()
    await fast.mark(ALICE, scene.room_id, [Mark("m.fully_read", second.event_id)])
    go_on.set()
    await late
    row = await get(ALICE, scene.room_id, "m.fully_read")
    assert row is not None
    assert orjson.loads(row.content) == {"event_id": second.event_id}


async def test_marks_sent_together_come_to_the_last(scene: Scene) -> None:
    """Who scrolls fast sends many marks at once: some would be refused, or an earlier one be kept."""
    sent = [await scene.core.send(scene.room_id, BOB, str(number)) for number in range(8)]
    workers = [receipts_of(scene.core)[0] for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for number, event in enumerate(reversed(sent)):
            marks = [Mark("m.fully_read", event.event_id), Mark("m.read", event.event_id)]
            tasks.create_task(workers[number % 3].mark(ALICE, scene.room_id, marks))
    row = await AccountDataStore(scene.core.database).get(ALICE, scene.room_id, "m.fully_read")
    assert row is not None
    assert orjson.loads(row.content) == {"event_id": sent[-1].event_id}
    assert of(await scene.told(BOB), sent[-1], "m.read", ALICE)


async def test_a_receipt_that_another_worker_moved_further_is_not_told_to_go_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is connected would see that somebody has read less than before, and who comes later would not."""
    nearer, further = [await scene.core.send(scene.room_id, BOB, text) for text in ("nearer", "further")]
    (slow, _), (fast, _) = receipts_of(scene.core), receipts_of(scene.core)
    append, is_begun, goes_on = scene.core.appender.append_rows, asyncio.Event(), asyncio.Event()

    async def append_late(rows: Sequence[LogRow]) -> int:
        monkeypatch.setattr(scene.core.appender, "append_rows", append)
        is_begun.set()
        await goes_on.wait()
        return await append(rows)

    monkeypatch.setattr(scene.core.appender, "append_rows", append_late)
    late = asyncio.create_task(slow.mark(ALICE, scene.room_id, [Mark("m.read", nearer.event_id)]))
    await is_begun.wait()
    await fast.mark(ALICE, scene.room_id, [Mark("m.read", further.event_id)])
    since = await scene.now(BOB)
    goes_on.set()
    await late
    assert await scene.told(BOB, since) == []
    assert of(await scene.told(BOB), further, "m.read", ALICE)


async def test_receipts_that_come_to_one_commit_the_wrong_way_round_are_told_in_order(scene: Scene) -> None:
    """A client that gives up one request and sends another would move its receipt back for everybody."""
    sent = [await scene.core.send(scene.room_id, BOB, text) for text in ("nearer", "further")]
    since = await scene.now(BOB)
    rows = [
        LogRow(
            kind="receipt",
            room_id=scene.room_id,
            user_id=ALICE,
            key="m.read",
            key2="",
            body=orjson.dumps({"event_id": event.event_id, "event_pos": event.pos, "ts": 1}),
        )
        for event in reversed(sent)
    ]
    commits = [scene.core.appender.append_rows([row]) for row in rows]
    pos, refused = await asyncio.gather(*commits, return_exceptions=True)
    assert isinstance(pos, int)
    assert isinstance(refused, ChangedMeanwhile)
    await scene.core.tail.wait_for(pos)
    assert of(await scene.told(BOB, since), sent[1], "m.read", ALICE)
    assert (await scene.now(BOB)).pos == pos


async def test_a_receipt_does_not_rely_on_a_write_that_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asked again would be told that the receipt is there, and find the room unread."""
    sent = await scene.core.send(scene.room_id, BOB, "read me")
    receipts, store = receipts_of(scene.core)
    append, is_begun, fails = scene.core.appender.append_rows, asyncio.Event(), asyncio.Event()

    async def fail_late(rows: Sequence[LogRow]) -> int:
        monkeypatch.setattr(scene.core.appender, "append_rows", append)
        is_begun.set()
        await fails.wait()
        raise DatabaseUnavailable

    monkeypatch.setattr(scene.core.appender, "append_rows", fail_late)
    marks = [Mark("m.read", sent.event_id)]
    first = asyncio.create_task(receipts.mark(ALICE, scene.room_id, marks))
    await is_begun.wait()
    more = [asyncio.create_task(receipts.mark(ALICE, scene.room_id, marks)) for _ in range(3)]
    await receipts.mark(BOB, scene.room_id, marks)  # by now they have compared
    more[0].cancel()
    fails.set()
    with pytest.raises(DatabaseUnavailable):
        await first
    await asyncio.gather(*more[1:])
    assert await store.position(scene.room_id, ALICE, "m.read", "") == sent.pos
    assert of(await scene.told(BOB), sent, "m.read", ALICE)
