"""The tail against a plain list: bounds, indexes, what is let go, and who is woken when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.log.tail import Tail
from ranvier.wire.log_rows import EventRow, LogRow, Row

ROOMS = ["!a", "!b", "!c"]
USERS = ["@x", "@y"]


def event(pos: int, room_id: str, related: int | None = None, redacts: int | None = None) -> EventRow:
    """Make an event, related to or redacting the one at another position."""
    content: dict[str, object] = {"body": str(pos)}
    if related is not None:
        content["m.relates_to"] = {"event_id": f"${related}", "rel_type": "m.thread"}
    pdu = {
        "auth_events": [],
        "content": content,
        "depth": pos,
        "hashes": {},
        "origin_server_ts": pos,
        "prev_events": [],
        "room_id": room_id,
        "sender": "@x",
        "type": "m.room.message",
    }
    return EventRow(
        event_nid=pos,
        room_nid=1,
        room_id=room_id,
        version_id="11",
        event_id=f"${pos}",
        type="m.room.message",
        state_key=None,
        sender="@x",
        depth=pos,
        origin_server_ts=pos,
        pdu=orjson.dumps(pdu),
        snapshot_nid=None,
        pos=pos,
        redacts=None if redacts is None else f"${redacts}",
    )


@dataclass
class Log:
    """Every row that was applied, and what came to the tail's listener."""

    tail: Tail
    rows: list[Row] = field(default_factory=list)
    heard: list[Row] = field(default_factory=list)

    def apply(self, rows: Sequence[Row], last: int) -> None:
        """Apply to both."""
        self.rows.extend(rows)
        self.tail.apply(rows, last)

    def check(self) -> None:
        """Compare all that the tail answers with what a plain list says."""
        tail = self.tail
        assert self.heard == self.rows
        held = [row for row in self.rows if row.pos > tail.start]
        assert len(tail) == len(held)
        for after in {tail.start, (tail.start + tail.pos) // 2, tail.pos}:
            for upto in (None, (after + tail.pos) // 2):
                kept = [row for row in held if row.pos > after and (upto is None or row.pos <= upto)]
                self._check_between(kept, after, upto)
        ids = {row.event_id: row for row in held if isinstance(row, EventRow)}
        for row in self.rows:
            if isinstance(row, EventRow):
                assert tail.event(row.event_id) is ids.get(row.event_id)
                related = [it for it in ids.values() if it.relation == (row.event_id, "m.thread")]
                assert tail.related_to(row.event_id) == related

    def _check_between(self, kept: Sequence[Row], after: int, upto: int | None) -> None:
        tail = self.tail
        events = [row for row in kept if isinstance(row, EventRow)]
        others = [row for row in kept if isinstance(row, LogRow)]
        assert tail.rows_since(after, upto) == list(kept)
        for room_id in ROOMS:
            of_room = [row for row in events if row.room_id == room_id]
            assert tail.events_of_room(room_id, after, upto) == of_room
            assert tail.rows_of_room(room_id, after, upto) == [r for r in others if r.room_id == room_id]
            if upto is None:
                assert (room_id in tail.rooms_with_events(ROOMS, after)) is bool(of_room)
                assert (room_id in tail.rooms_with_rows(ROOMS, after)) is any(
                    row.room_id == room_id for row in others
                )
            if after == tail.start:
                limit_pos = tail.pos if upto is None else upto
                assert tail.latest_of_room(room_id, limit_pos, 2) == of_room[-2:]
        for user_id in USERS:
            assert tail.rows_of_user(user_id, after, upto) == [r for r in others if r.user_id == user_id]


EVENTS = st.tuples(
    st.just("event"),
    st.sampled_from(ROOMS),
    st.one_of(st.none(), st.integers(1, 30)),
    st.one_of(st.none(), st.integers(1, 30)),
)
OTHERS = st.tuples(
    st.just("row"),
    st.sampled_from([None, *ROOMS]),
    st.sampled_from([None, *USERS]),
    st.integers(0, 2000),
)
# Now and then a position has no row: it was removed from the table before this process read it.
Made = tuple[str, str | None, object, object] | None
PIECES = st.lists(st.lists(st.one_of(EVENTS, OTHERS, st.none()), max_size=6), max_size=12)


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, start=st.integers(0, 5), max_rows=st.integers(0, 12), max_bytes=st.integers(0, 12_000))
def test_the_tail_says_what_the_log_says(
    pieces: list[list[tuple[str, str | None, object, object] | None]],
    start: int,
    max_rows: int,
    max_bytes: int,
) -> None:
    """A client would miss a message, or be told one twice; or a busy server would run out of memory."""
    tail = Tail(max_rows=max_rows, max_bytes=max_bytes)
    log = Log(tail)
    tail.listen(log.heard.extend)
    tail.reset(start)
    pos = start
    for piece in pieces:
        rows: list[Row] = []
        for made in piece:
            pos += 1
            if made is None:
                continue
            kind, room_id, first, second = made
            if kind == "event":
                assert room_id is not None
                assert first is None or isinstance(first, int)
                assert second is None or isinstance(second, int)
                rows.append(event(pos, room_id, first, second))
            else:
                assert first is None or isinstance(first, str)
                assert isinstance(second, int)
                rows.append(LogRow(kind="k", pos=pos, room_id=room_id, user_id=first, body=b"x" * second))
        log.apply(rows, pos)
        assert tail.pos == pos
        log.check()
        assert len(tail) <= max_rows
        assert sum(row.size for row in tail.rows_since(tail.start)) <= max_bytes


def test_a_redaction_takes_effect_on_what_is_held() -> None:
    """Who syncs after a redaction would still be shown what was redacted."""
    tail = Tail()
    tail.apply([event(1, "!a"), event(2, "!a")], 2)
    tail.apply([event(3, "!a", redacts=1)], 3)
    first, second, _ = tail.events_of_room("!a", 0)
    assert first.redacted_because is not None
    assert first.content == {}
    assert second.redacted_because is None


def test_a_reset_forgets_everything() -> None:
    """After a reset the tail would answer with rows from before it, as if there were no gap."""
    tail = Tail()
    tail.apply([event(1, "!a", related=1), LogRow(kind="k", pos=2, room_id="!a", user_id="@x")], 2)
    tail.reset(10)
    assert (tail.start, tail.pos, len(tail)) == (10, 10, 0)
    assert not tail.rows_since(0)
    assert not tail.events_of_room("!a", 0)
    assert not tail.rows_of_room("!a", 0)
    assert not tail.rows_of_user("@x", 0)
    assert tail.event("$1") is None
    assert tail.related_to("$1") == []


def row(pos: int) -> LogRow:
    """Make a row."""
    return LogRow(kind="k", pos=pos)


async def test_who_waits_is_woken_when_it_is_there_and_not_before() -> None:
    """A client would not see what it just wrote."""
    tail = Tail()
    woken: list[int] = []

    async def wait(pos: int) -> None:
        assert await tail.wait_for(pos)
        assert tail.pos >= pos
        woken.append(pos)

    async with asyncio.TaskGroup() as tasks:
        for pos in (3, 1, 2, 3, 5):
            tasks.create_task(wait(pos))
        await asyncio.sleep(0)
        assert woken == []
        tail.apply([row(1)], 1)
        await settle()
        assert woken == [1]
        tail.apply([row(2), row(3)], 3)
        await settle()
        assert woken == [1, 2, 3, 3]
        tail.reset(5)
    assert woken == [1, 2, 3, 3, 5]


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_listeners_come_before_those_who_wait() -> None:
    """An answer would be made with caches that do not know yet what the client was told is there."""
    tail = Tail()
    order: list[str] = []
    tail.listen(lambda rows: order.append("cache"))
    tail.listen(lambda rows: order.append("notifier"))

    async def wait() -> None:
        await tail.wait_for(1)
        order.append("waiter")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait())
        await asyncio.sleep(0)
        tail.apply([row(1)], 1)
    assert order == ["cache", "notifier", "waiter"]


def test_who_listens_for_changes_hears_of_no_message() -> None:
    """Some twenty caches would look at each message in vain; or one of them would stay as it was."""
    tail = Tail()
    heard: list[list[int]] = []
    tail.listen(lambda rows: heard.append([it.pos for it in rows]), changes=True)
    tail.apply([event(1, "!a"), event(2, "!a", related=1)], 2)
    assert heard == []
    member = event(4, "!a")
    member.state_changes = (("m.room.member", "@x"),)
    tail.apply([event(3, "!a"), member, LogRow(kind="device_list", pos=5, user_id="@x"), event(6, "!b")], 6)
    tail.apply([event(7, "!a", redacts=1)], 7)
    assert heard == [[4, 5], [7]]


async def test_waiting_for_what_never_comes_ends_and_leaves_nothing() -> None:
    """A client that names positions of the far future would fill the server's memory, request by request."""
    tail = Tail()
    waits = [tail.wait_for(10**12 + n, 0.01) for n in range(20)]
    assert await asyncio.gather(*waits) == [False] * 20
    cancelled = asyncio.create_task(tail.wait_for(10**12))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert tail._waiting == []


async def test_a_waiter_that_is_cancelled_as_it_is_woken_harms_nobody() -> None:
    """One client that hangs up at the wrong moment would leave others waiting."""
    tail = Tail()
    first, second = asyncio.create_task(tail.wait_for(1)), asyncio.create_task(tail.wait_for(2))
    await asyncio.sleep(0)
    tail.apply([row(1)], 1)
    first.cancel()
    tail.apply([row(2)], 2)
    assert await second is True
    with pytest.raises(asyncio.CancelledError):
        await first
    assert tail._waiting == []
