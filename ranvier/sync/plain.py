"""The most usual news, answered cheaply: something was said in a room, and nothing else happened.

Everybody who waits in a room is told the same then, so its timeline is put into bytes once for all of them.
Whatever is not that simple is left to the sections, which know all the rules (``sync.assemble``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from ranvier.log.bus import Bus
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Membership
from ranvier.spec.filters import NO_FILTER, Filter
from ranvier.sync.context import SyncContext, UnreadSection, UserSection
from ranvier.sync.notifier import Notifier
from ranvier.sync.render import render_for_joined
from ranvier.sync.windows import DEFAULT_LIMIT, MAX_LIMIT
from ranvier.wire.log_rows import EventRow
from ranvier.wire.tokens import Token

_KEPT = 256


class _Said(NamedTuple):
    """A room's timeline between two positions: ``parts`` are its keys, for everybody but the ``senders``."""

    parts: bytes
    senders: frozenset[str]
    length: int


class PlainNews:
    """Answer an incremental sync of which all is in the tail and all is messages.

    ``always`` are the sections of those keys that every answer has.
    """

    def __init__(
        self,
        *,
        tail: Tail,
        bus: Bus,
        notifier: Notifier,
        unread: UnreadSection,
        always: Mapping[str, UserSection],
        clock: Clock,
    ) -> None:
        self._tail = tail
        self._bus = bus
        self._notifier = notifier
        self._unread = unread
        self._always = [(b',"%b":' % key.encode(), section) for key, section in always.items()]
        self._clock = clock
        self._said: OrderedDict[tuple[str, int, int], _Said | None] = OrderedDict()

    async def answer(
        self,
        user_id: str,
        device_id: str | None,
        since: Token,
        filter: Filter,
        memberships: Mapping[str, Membership],
        ignored: frozenset[str],
    ) -> bytes | None:
        """Give the answer, or None where it is not as simple as that (or there is nothing to tell)."""
        tail = self._tail
        if since.pos < max(tail.start, self._notifier.shared_pos) or self._bus.ephemeral_now() != since[1:]:
            return None
        if tail.has_rows_of_user(user_id, since.pos) or tail.rooms_with_rows(memberships, since.pos):
            return None
        upto = Token(tail.pos, since.ephemeral, since.epoch)
        told: list[tuple[str, _Said]] = []
        most = _limit(filter)
        for room_id in tail.rooms_with_events(memberships, since.pos):
            membership = memberships[room_id]
            said = self._timeline(room_id, since.pos, upto.pos)
            if said is None or said.length > most or user_id in said.senders or ignored & said.senders:
                return None
            if membership.membership != "join" or membership.pos > since.pos:
                return None
            told.append((room_id, said))
        if not told:
            return None
        context = _context(user_id, device_id, since, upto, filter, [room_id for room_id, _ in told])
        unread = await self._unread.since(context, context.joined)
        pieces = [b'{"next_batch":"%b"' % str(upto).encode()]
        for key, section in self._always:
            if (value := await section.since(context)) is not None:
                pieces += (key, value)
        threads = filter.room.timeline.unread_thread_notifications
        comma = b',"rooms":{"join":{'
        for room_id, said in told:
            pieces += (comma, orjson.dumps(room_id), b":{", said.parts)
            if (counts := unread.get(room_id)) is not None:
                for part in counts.parts(threads=threads):
                    pieces += (b",", part)
            pieces.append(b"}")
            comma = b","
        pieces.append(b"}}}")
        return b"".join(pieces)

    def _timeline(self, room_id: str, after: int, upto: int) -> _Said | None:
        """Put a room's news into bytes, once for all who wait; None where they are not messages alone."""
        key = (room_id, after, upto)
        if key in self._said:
            return self._said[key]
        said = self._said[key] = self._put(self._tail.events_of_room(room_id, after, upto))
        if len(self._said) > _KEPT:
            self._said.popitem(last=False)
        return said

    def _put(self, rows: Sequence[EventRow]) -> _Said | None:
        if any(row.state_key is not None or row.redacts is not None or row.state_changes for row in rows):
            return None
        now_ms = self._clock.now_ms()
        parts = b'"timeline":{"events":[%b],"limited":false,"prev_batch":"%b"},"state":{"events":[]}' % (
            b",".join([render_for_joined(row, now_ms) for row in rows]),
            str(Token(rows[0].pos - 1)).encode(),
        )
        return _Said(parts, frozenset(row.sender for row in rows), len(rows))


def is_plain_filter(filter: Filter) -> bool:
    """Tell whether a filter takes every event of every room as it is, and asks for no members."""
    if filter is NO_FILTER:
        return True
    room = filter.room
    return (
        filter.event_format == "client"
        and not filter.selects_fields
        and room.is_every_room
        and room.timeline.is_everything
        and not room.state.lazy_load_members
    )


def _limit(filter: Filter) -> int:
    limit = filter.room.timeline.limit
    return DEFAULT_LIMIT if limit is None else min(limit, MAX_LIMIT)


def _context(
    user_id: str,
    device_id: str | None,
    since: Token,
    upto: Token,
    filter: Filter,
    room_ids: Sequence[str],
) -> SyncContext:
    return SyncContext(
        user_id=user_id,
        device_id=device_id,
        filter=filter,
        since=since,
        upto=upto,
        joined=room_ids,
        newly_joined=frozenset(),
        left=frozenset(),
        in_tail=True,
    )
