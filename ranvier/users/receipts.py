"""Receipts and read markers: how far a user has read, which only ever moves forward."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import orjson

from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.spec.errors import forbidden, invalid_param, not_found
from ranvier.storage.account_data import ChangedMeanwhile
from ranvier.storage.events import EventStore
from ranvier.storage.receipts import ReceiptStore
from ranvier.users.account_data import ACCOUNT_DATA, FULLY_READ, AccountData
from ranvier.users.edits import Edits
from ranvier.wire.log_rows import EventRow, LogRow, Row

RECEIPT: Final = "receipt"
READ: Final = "m.read"
READ_PRIVATE: Final = "m.read.private"
MAIN: Final = "main"
UNTHREADED: Final = ""
_MAX_HOPS: Final = 3


class Mark(NamedTuple):
    """What a client wants to mark as read: ``receipt_type`` (or ``m.fully_read``) up to ``event_id``.

    ``thread_id`` is empty for an unthreaded receipt and for ``m.fully_read``.
    """

    receipt_type: str
    event_id: str
    thread_id: str = UNTHREADED


_Key = tuple[str, str, str, str]


class Receipts:
    """Move receipts and read markers forward.

    The positions of receipts in use are in memory and follow the log. The table compares once more and
    refuses what is not further, and a read marker is written with the position of the one that it was
    compared with: if another process moved one meanwhile, all is compared again.
    """

    def __init__(
        self,
        *,
        store: ReceiptStore,
        events: EventStore,
        memberships: Memberships,
        appender: Appender,
        tail: Tail,
        clock: Clock,
        account_data: AccountData,
        max_known: int = 50_000,
    ) -> None:
        self._store = store
        self._events = events
        self._memberships = memberships
        self._appender = appender
        self._tail = tail
        self._clock = clock
        self._account_data = account_data
        self._max_known = max_known
        self._edits = Edits()
        self._known: OrderedDict[_Key, int] = OrderedDict()
        tail.listen(self._apply, changes=True)

    async def mark(self, user_id: str, room_id: str, marks: Sequence[Mark]) -> None:
        """Mark a room as read up to some events; what would move back is left as it is.

        Raises 403 ``M_FORBIDDEN`` for who is not in the room, 404 ``M_NOT_FOUND`` for an event that is not
        in the room, 400 ``M_INVALID_PARAM`` for one that is not in the thread. Then nothing is marked.
        Source: client-server API, "Receipts" and "Read and unread markers".
        """
        membership = (await self._memberships.of(user_id)).get(room_id)
        if membership is None or membership.membership != "join":
            raise forbidden("You are not in this room")
        checked = [(mark, await self._check(room_id, mark)) for mark in marks]
        await self._edits.make((user_id, room_id), partial(self._move, user_id, room_id, checked))

    async def _move(self, user_id: str, room_id: str, checked: Sequence[tuple[Mark, EventRow]]) -> None:
        rows: list[LogRow] = []
        for mark, event in checked:
            if mark.receipt_type == FULLY_READ:
                rows.extend(await self._marker_rows(user_id, room_id, event))
                continue
            key = (room_id, user_id, mark.receipt_type, mark.thread_id)
            before = await self._position(key)
            if before is None or event.pos > before:
                rows.append(_receipt_row(key, event, self._clock.now_ms()))
        if not rows:
            return
        try:
            pos = await self._appender.append_rows(rows)
        except ChangedMeanwhile:
            for row in rows:
                if row.kind == RECEIPT:
                    self._known.pop(_key(row), None)  # the table is ahead of the log that we followed
            raise
        await self._tail.wait_for(pos)

    # -- the event ---------------------------------------------------------------------------------

    async def _check(self, room_id: str, mark: Mark) -> EventRow:
        event = await self._event(room_id, mark.event_id)
        if event is None:
            raise not_found("That event is not in this room")
        if mark.thread_id and not await self._is_in_thread(event, mark.thread_id):
            raise invalid_param("That event is not related to the thread_id")
        return event

    async def _event(self, room_id: str, event_id: str) -> EventRow | None:
        """Find an event of the room's timeline."""
        event = self._tail.event(event_id)
        if event is None:
            event = (await self._events.by_ids([event_id])).get(event_id)
        return event if event is not None and event.room_id == room_id and event.pos != 0 else None

    async def _is_in_thread(self, event: EventRow, thread_id: str) -> bool:
        # "Thread roots are considered to be in the main timeline", yet clients that show a thread with
        # nothing in it but its root mark that as read in the thread.
        if event.event_id == thread_id:
            return True
        root = await self._thread_root(event)
        if root == thread_id:
            return True
        # A redacted event has lost its relation for those clients that come to see it only now.
        return thread_id == MAIN and (root is None or event.redacted_because is not None)

    async def _thread_root(self, event: EventRow) -> str | None:
        """Give the thread that an event is in: "a maximum of 3 hops is recommended"."""
        current: EventRow | None = event
        for _ in range(_MAX_HOPS + 1):
            relation = current.relation if current is not None else None
            if relation is None:
                return None
            target, rel_type = relation
            if rel_type == "m.thread":
                return target
            current = await self._event(event.room_id, target)
        return None

    # -- where the user stands ---------------------------------------------------------------------

    async def _marker_rows(self, user_id: str, room_id: str, event: EventRow) -> Sequence[LogRow]:
        """Give what moves the marker to an event: nothing if it stands there or further."""
        content, pos = await self._account_data.with_position(user_id, FULLY_READ, room_id)
        current = content.get("event_id") if content is not None else None
        if isinstance(current, str):
            before = await self._event(room_id, current)
            if before is not None and before.pos >= event.pos:
                return ()
        return (_marker_row(user_id, room_id, event, computed_on=pos),)

    async def _position(self, key: _Key) -> int | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        before = self._tail.pos
        stored = await self._store.position(*key)
        if stored is not None:
            self._know(key, stored)
        # What came while the database answered.
        for row in self._tail.rows_of_room(key[0], max(before, self._tail.start)):
            if row.kind == RECEIPT and _key(row) == key:
                self._know(key, _event_pos(row))
        return self._known.get(key)

    def _know(self, key: _Key, event_pos: int) -> None:
        known = self._known.get(key)
        self._known[key] = event_pos if known is None else max(known, event_pos)
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, LogRow) and row.kind == RECEIPT and (key := _key(row)) in self._known:
                self._know(key, _event_pos(row))


def _key(row: LogRow) -> _Key:
    assert row.room_id is not None
    assert row.user_id is not None
    assert row.key is not None
    return (row.room_id, row.user_id, row.key, row.key2 or UNTHREADED)


def _event_pos(row: LogRow) -> int:
    event_pos: int = orjson.loads(row.body or b"{}")["event_pos"]
    return event_pos


def _receipt_row(key: _Key, event: EventRow, now_ms: int) -> LogRow:
    room_id, user_id, receipt_type, thread_id = key
    body = {"event_id": event.event_id, "event_pos": event.pos, "ts": now_ms}
    return LogRow(
        kind=RECEIPT,
        room_id=room_id,
        user_id=user_id,
        key=receipt_type,
        key2=thread_id,
        body=orjson.dumps(body),
    )


def _marker_row(user_id: str, room_id: str, event: EventRow, *, computed_on: int) -> LogRow:
    return LogRow(
        kind=ACCOUNT_DATA,
        room_id=room_id,
        user_id=user_id,
        key=FULLY_READ,
        key2=str(computed_on),
        body=orjson.dumps({"event_id": event.event_id}),
    )
