"""Account data in sync: global with the push rules, and by room with tags and read markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from ranvier.log.tail import Tail
from ranvier.spec.push_rule_edits import decode_rules
from ranvier.storage.account_data import AccountDataRow, AccountDataStore
from ranvier.sync.context import RoomParts, SyncContext
from ranvier.users.account_data import ACCOUNT_DATA, PUSH_RULES_TYPE
from ranvier.users.push_rules import PUSH_RULES, PushRules, rules_content


class AccountDataSection:
    """The key ``account_data`` of an answer."""

    def __init__(self, *, store: AccountDataStore, push_rules: PushRules, tail: Tail) -> None:
        self._store = store
        self._push_rules = push_rules
        self._tail = tail

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give all global account data."""
        pieces = [(row.type, row.content) for row in await self._store.of_user(context.user_id)]
        pieces.append(await self._rules(context.user_id))
        return _section(context, pieces)

    async def since(self, context: SyncContext) -> bytes | None:
        """Give the pieces that changed, each once."""
        assert context.since is not None
        after, upto = context.since.pos, context.upto.pos
        pieces: dict[str, bytes] = {}
        if not context.in_tail:
            rows = await self._store.between(context.user_id, after=after, upto=upto)
            pieces.update((row.type, row.content) for row in rows if not row.room_id)
            if after < (await self._push_rules.of(context.user_id)).pos <= upto:
                pieces.update([await self._rules(context.user_id)])
            return _section(context, pieces.items())
        for row in self._tail.rows_of_user(context.user_id, after, upto):
            if row.kind == ACCOUNT_DATA and row.room_id is None:
                assert row.key is not None
                assert row.body is not None
                pieces[row.key] = row.body
            elif row.kind == PUSH_RULES:
                assert row.body is not None
                pieces[PUSH_RULES_TYPE] = rules_content(decode_rules(row.body), context.user_id)
        return _section(context, pieces.items())

    async def _rules(self, user_id: str) -> tuple[str, bytes]:
        return PUSH_RULES_TYPE, rules_content((await self._push_rules.of(user_id)).rules, user_id)


class RoomAccountDataSection:
    """The list ``account_data`` of each joined room."""

    def __init__(self, *, store: AccountDataStore, tail: Tail) -> None:
        self._store = store
        self._tail = tail

    async def initial(self, context: SyncContext, room_ids: Sequence[str]) -> RoomParts:
        """Give all account data of some rooms."""
        return _by_room(context, await self._store.of_rooms(context.user_id, room_ids))

    async def since(self, context: SyncContext) -> RoomParts:
        """Give the pieces that changed, each once, in the rooms that have any."""
        assert context.since is not None
        after, upto = context.since.pos, context.upto.pos
        if not context.in_tail:
            rows = await self._store.between(context.user_id, after=after, upto=upto)
        else:
            rows = []
            for row in self._tail.rows_of_user(context.user_id, after, upto):
                if row.kind == ACCOUNT_DATA and row.room_id is not None:
                    assert row.key is not None
                    assert row.body is not None
                    rows.append(AccountDataRow(row.room_id, row.key, row.body, row.pos))
        if not rows:
            return {}
        joined = set(context.joined)
        latest = {(row.room_id, row.type): row for row in rows if row.room_id in joined}
        return _by_room(context, latest.values())


def _event(type: str, content: bytes) -> bytes:
    return b'{"content":%b,"type":%b}' % (content, orjson.dumps(type))


def _section(context: SyncContext, pieces: Iterable[tuple[str, bytes]]) -> bytes | None:
    wanted = context.filter.account_data
    events = [_event(type, content) for type, content in pieces if wanted.matches(type)]
    return b'{"events":[%b]}' % b",".join(events) if events else None


def _by_room(context: SyncContext, rows: Iterable[AccountDataRow]) -> RoomParts:
    wanted = context.filter.room.account_data
    rooms: dict[str, list[bytes]] = {}
    for row in rows:
        if wanted.matches(row.type, room_id=row.room_id):
            rooms.setdefault(row.room_id, []).append(_event(row.type, row.content))
    return rooms
