"""``m.receipt`` among a room's ephemeral events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.storage.receipts import ReceiptRow, ReceiptStore
from ranvier.sync.context import RoomParts, SyncContext
from ranvier.users.receipts import READ_PRIVATE, RECEIPT
from ranvier.wire.log_rows import LogRow

_EMPTY: RoomParts = {}
_MANY: Final = 200


class ReceiptsSection:
    """Tell how far others, and the user, have read.

    ``ignored`` gives the ids of the users of whom a user wants to hear nothing.
    """

    def __init__(
        self, *, store: ReceiptStore, tail: Tail, ignored: Callable[[str], Awaitable[frozenset[str]]]
    ) -> None:
        self._store = store
        self._tail = tail
        self._ignored = ignored
        self._turns = Turns(1)

    async def initial(self, context: SyncContext, room_ids: Sequence[str]) -> RoomParts:
        """Give the receipts in force."""
        wanted = _wanted_rooms(context, room_ids)
        if not wanted:
            return _EMPTY
        rows = await self._store.of_rooms(wanted, context.user_id, upto=context.upto.pos)
        return await self._parts(context, rows)

    async def since(self, context: SyncContext) -> RoomParts:
        """Give the receipts that were sent after ``context.since``."""
        assert context.since is not None
        known = [room_id for room_id in context.joined if room_id not in context.newly_joined]
        if context.in_tail:
            known = self._tail.rooms_with_rows(known, context.since.pos)
        wanted = _wanted_rooms(context, known)
        if not wanted:
            return _EMPTY
        after, upto = context.since.pos, context.upto.pos
        if not context.in_tail:
            rows = await self._store.between(wanted, context.user_id, after=after, upto=upto)
            return await self._parts(context, rows)
        found = [
            _receipt(row)
            for room_id in wanted
            for row in self._tail.rows_of_room(room_id, after, upto)
            if row.kind == RECEIPT and (row.key != READ_PRIVATE or row.user_id == context.user_id)
        ]
        return await self._parts(context, _newest(found))

    async def _parts(self, context: SyncContext, rows: Iterable[ReceiptRow]) -> RoomParts:
        rooms: dict[str, list[ReceiptRow]] = {}
        ignored: frozenset[str] | None = None
        for row in rows:
            if ignored is None:
                ignored = await self._ignored(context.user_id)
            if row.user_id not in ignored:
                rooms.setdefault(row.room_id, []).append(row)
        parts = {}
        for room_id, of_room in rooms.items():
            if len(of_room) > _MANY:
                await self._turns.take()
            parts[room_id] = receipt_events(of_room)
        return parts


def receipt_events(rows: Sequence[ReceiptRow]) -> list[bytes]:
    """Make ``m.receipt`` events of the receipts of one room.

    One event has place for one receipt per event, type and user: where a user sent several for one
    event, the unthreaded one stands in the first event and the others in further ones.
    """
    contents: list[dict[str, dict[str, dict[str, Any]]]] = [{}]
    for row in sorted(rows, key=lambda row: row.thread_id != ""):
        receipt: dict[str, Any] = {"ts": row.ts}
        if row.thread_id:
            receipt["thread_id"] = row.thread_id
        for content in contents:
            users = content.setdefault(row.event_id, {}).setdefault(row.receipt_type, {})
            if row.user_id not in users:
                users[row.user_id] = receipt
                break
        else:
            contents.append({row.event_id: {row.receipt_type: {row.user_id: receipt}}})
    return [orjson.dumps({"type": "m.receipt", "content": content}) for content in contents]


def _wanted_rooms(context: SyncContext, room_ids: Sequence[str]) -> list[str]:
    wanted = context.filter.room.ephemeral
    if wanted.is_everything:
        return list(room_ids)
    return [room_id for room_id in room_ids if wanted.matches("m.receipt", room_id=room_id)]


def _newest(rows: Iterable[ReceiptRow]) -> Iterable[ReceiptRow]:
    """Keep of several receipts of one user, type and thread the one that is furthest."""
    newest: dict[tuple[str, str, str, str], ReceiptRow] = {}
    for row in rows:
        key = row[:4]
        known = newest.get(key)
        if known is None or row.event_pos > known.event_pos:
            newest[key] = row
    return newest.values()


def _receipt(row: LogRow) -> ReceiptRow:
    assert row.room_id is not None
    assert row.user_id is not None
    assert row.key is not None
    body = orjson.loads(row.body or b"{}")
    return ReceiptRow(
        row.room_id, row.user_id, row.key, row.key2 or "", body["event_id"], body["ts"], body["event_pos"]
    )
