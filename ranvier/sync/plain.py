"""The most usual news, answered cheaply: something was said in a room, and nothing else happened.

Everybody who waits in a room is told the same then, so its timeline is put into bytes once for all of them,
and what an answer needs is in memory: it is made without waiting for anything.
Whatever is not that simple is left to the sections, which know all the rules (``sync.assemble``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from ranvier.log.bus import Bus
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.spec.filters import NO_FILTER, Filter
from ranvier.sync.ephemeral_news import EphemeralNews
from ranvier.sync.notifier import Notifier
from ranvier.sync.render import render_for_joined
from ranvier.sync.sections.rooms import RoomSections
from ranvier.sync.sections.unread import UnreadCounts
from ranvier.sync.windows import DEFAULT_LIMIT, MAX_LIMIT
from ranvier.users.account_data import IgnoredUsers
from ranvier.users.device_keys import KeyCounts
from ranvier.users.unread import Unread
from ranvier.users.unread_tally import Count, Counts
from ranvier.wire.log_rows import EventRow
from ranvier.wire.tokens import Token

_KEPT: Final = 256
_MOST_ROWS: Final = 500


class _Said(NamedTuple):
    """A room's timeline between two positions: ``parts`` are its keys, for everybody but the ``senders``,
    who get the transaction ids of what they sent."""

    parts: bytes
    senders: frozenset[str]
    length: int


class _News(NamedTuple):
    """Whom and what the log's rows between two positions concern."""

    event_rooms: frozenset[str]
    other_rooms: frozenset[str]
    users: frozenset[str]


class PlainNews:
    """Answer an incremental sync of which all is in memory and all is messages."""

    def __init__(
        self,
        *,
        tail: Tail,
        bus: Bus,
        ephemeral: EphemeralNews,
        notifier: Notifier,
        memberships: Memberships,
        ignored: IgnoredUsers,
        unread: Unread,
        key_counts: KeyCounts,
        room_sections: RoomSections,
        clock: Clock,
    ) -> None:
        self._tail = tail
        self._bus = bus
        self._ephemeral = ephemeral
        self._notifier = notifier
        self._memberships = memberships
        self._ignored = ignored
        self._unread = unread
        self._key_counts = key_counts
        self._room_sections = room_sections
        self._clock = clock
        self._shown: tuple[Token, bytes] = (Token(-1), b"")
        self._rooms: dict[tuple[bytes, Count, bool, bool] | None, bytes] = {}
        self._said: OrderedDict[tuple[str, int, int], _Said | None] = OrderedDict()
        self._news: OrderedDict[tuple[int, int], _News | None] = OrderedDict()
        self._latest: tuple[int, int, _News | None] = (-1, -1, None)
        self._latest_answer = (b"", (b"", b""), b"", b"")

    def is_quiet(self, user_id: str, memberships: Mapping[str, Membership], since: Token) -> bool:
        """Tell whether surely nothing came since: the usual case of a client that asks again at once."""
        tail, pos = self._tail, since.pos
        if pos < tail.start or pos < self._notifier.shared_pos:
            return False
        if self._ephemeral.concern(user_id, memberships, since):
            return False
        if pos >= tail.pos:
            return pos == tail.pos
        news = self._between(pos, tail.pos)
        if news is None:
            return False
        event_rooms, other_rooms, users = news
        rooms = memberships.keys()
        return not (user_id in users or rooms & event_rooms or rooms & other_rooms)

    def answer(
        self, user_id: str, device_id: str | None, since: Token, filter: Filter, *, state_after: bool
    ) -> bytes | None:
        """Give the answer, or None where it is not as simple as that (or there is nothing to tell)."""
        tail, after = self._tail, since.pos
        upto = tail.pos
        if after < tail.start or after < self._notifier.shared_pos:
            return None
        memberships, ignored = self._memberships.peek(user_id), self._ignored.held(user_id)
        news = self._between(after, upto)
        if news is None or memberships is None or ignored is None:
            return None
        event_rooms, other_rooms, users = news
        rooms = memberships.keys()
        if user_id in users or (other_rooms and rooms & other_rooms):
            return None
        if self._ephemeral.concern(user_id, memberships, since):
            return None
        keys = (b"", b"") if device_id is None else self._key_counts.held(user_id, device_id)
        if keys is None:
            return None
        most = _limit(filter)
        lazy = filter.room.state.lazy_load_members
        threads = filter.room.timeline.unread_thread_notifications
        told: list[bytes] = []
        for room_id in rooms & event_rooms:
            membership = memberships[room_id]
            said = self._timeline(room_id, after, upto)
            if said is None or said.length > most or (ignored and ignored & said.senders):
                return None
            if membership.membership != "join" or membership.pos > after:
                return None
            if lazy and not self._room_sections.has_sent_members(user_id, device_id, room_id, said.senders):
                return None
            if user_id in said.senders:
                said = self._as_sender(tail.events_of_room(room_id, after, upto), user_id, device_id)
            counts = self._unread.held(user_id, room_id)
            if counts is None:
                return None
            told.append(self._room(room_id, said.parts, counts, threads, state_after))
        if not told:
            return None
        return self._whole(self._now(), keys, told[0] if len(told) == 1 else b",".join(told))

    def _whole(self, now: bytes, keys: tuple[bytes, bytes], joined: bytes) -> bytes:
        """Put an answer together; mostly it is the one that somebody else was given just now."""
        latest_now, latest_keys, latest_joined, answer = self._latest_answer
        if now is latest_now and joined is latest_joined and keys == latest_keys:
            return answer
        counts = b""
        if keys[0]:
            counts = b',"device_one_time_keys_count":%b,"device_unused_fallback_key_types":%b' % keys
        answer = b'{"next_batch":"%b"%b,"rooms":{"join":{%b}}}' % (now, counts, joined)
        self._latest_answer = (now, keys, joined, answer)
        return answer

    def _room(self, room_id: str, timeline: bytes, counts: Counts, threads: bool, state_after: bool) -> bytes:
        """Give what is told of a room: the same for all who have as much to read there."""
        # The thread counts of one who has none are no part of the answer.
        key = None if counts.threads else (timeline, counts.total, threads, state_after)
        room = self._rooms.get(key)
        if room is None:
            state = b',"state_after":{"events":[]}' if state_after else b',"state":{"events":[]}'
            parts = UnreadCounts(counts).parts(threads=threads)
            room = b"%b:{%b%b,%b}" % (orjson.dumps(room_id), timeline, state, b",".join(parts))
            if key is not None:
                if len(self._rooms) >= _KEPT:
                    self._rooms.clear()
                self._rooms[key] = room
        return room

    def _now(self) -> bytes:
        """Give the token of the present, which is the same for all who are told at once."""
        pos, (count, epoch) = self._tail.pos, self._bus.ephemeral_now()
        shown, text = self._shown
        if shown.pos != pos or shown.ephemeral != count or shown.epoch != epoch:
            shown = Token(pos, count, epoch)
            text = str(shown).encode()
            self._shown = (shown, text)
        return text

    # -- the same for everybody ------------------------------------------------------------------------

    def _between(self, after: int, upto: int) -> _News | None:
        """Give whom the rows between two positions concern, None where there are very many."""
        known_after, known_upto, news = self._latest
        if after == known_after and upto == known_upto:
            return news
        key = (after, upto)
        if key in self._news:
            news = self._news[key]
        else:
            news = self._news[key] = self._sum_up(after, upto) if upto - after <= _MOST_ROWS else None
            if len(self._news) > _KEPT:
                self._news.popitem(last=False)
        self._latest = (after, upto, news)
        return news

    def _sum_up(self, after: int, upto: int) -> _News:
        event_rooms, other_rooms, users = set[str](), set[str](), set[str]()
        for row in self._tail.rows_since(after, upto):
            if isinstance(row, EventRow):
                event_rooms.add(row.room_id)
                continue
            if row.room_id is not None:
                other_rooms.add(row.room_id)
            if row.user_id is not None:
                users.add(row.user_id)
        return _News(frozenset(event_rooms), frozenset(other_rooms), frozenset(users))

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
        return self._as_sender(rows, None, None)

    def _as_sender(self, rows: Sequence[EventRow], user_id: str | None, device_id: str | None) -> _Said:
        """Put messages into bytes for the device that sent some of them: it gets its transaction ids."""
        now_ms = self._clock.now_ms()
        events = [
            render_for_joined(row, now_ms, own=row.sender == user_id and row.txn_device == device_id)
            for row in rows
        ]
        parts = b'"timeline":{"events":[%b],"limited":false,"prev_batch":"%b"}' % (
            b",".join(events),
            str(Token(rows[0].pos - 1)).encode(),
        )
        return _Said(parts, frozenset(row.sender for row in rows), len(rows))


def is_plain_filter(filter: Filter) -> bool:
    """Tell whether a filter takes every event of every room as it is."""
    if filter is NO_FILTER:
        return True
    room = filter.room
    return (
        filter.event_format == "client"
        and not filter.selects_fields
        and room.is_every_room
        and room.timeline.is_everything
        and not (room.state.lazy_load_members and room.state.include_redundant_members)
    )


def _limit(filter: Filter) -> int:
    limit = filter.room.timeline.limit
    return DEFAULT_LIMIT if limit is None else min(limit, MAX_LIMIT)
