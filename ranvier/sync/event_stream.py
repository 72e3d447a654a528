"""``GET /events``: what is new for a user, or in one room, as a flat list that is waited for.

Source: client-server API, ``GET /events`` (deprecated), and "Room Previews" for its form with a room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from ranvier.log.bus import Bus
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.access import RoomAccess
from ranvier.rooms.actor import Actor, InvitesBlocked
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.room import MEMBER
from ranvier.rooms.timeline import IgnoredUsers, Timeline, wanted_by
from ranvier.rooms.visibility import Sight, Visibility
from ranvier.spec.filters import NO_FILTER, RoomEventFilter
from ranvier.storage.events import EventStore, TimelineSpan
from ranvier.sync.ahead import Ahead
from ranvier.sync.context import RoomSection, SyncContext, UserSection
from ranvier.sync.notifier import Notifier, Waiter
from ranvier.sync.render import Renderer
from ranvier.wire.log_rows import EventRow, Row
from ranvier.wire.tokens import Token

MAX_EVENTS: Final = 100
"""Events of one answer; the client asks again for the rest, with the token that it is given."""
_EVERY_EVENT: Final = RoomEventFilter()


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What a client asks of ``/events``; without ``since`` it asks for what comes from now on."""

    actor: Actor
    device_id: str | None
    since: Token | None
    timeout_s: float
    room_id: str | None = None


class _Piece(NamedTuple):
    """A piece of the stream up to ``end``; ``more`` says that there is something after it already."""

    chunk: list[bytes]
    end: Token
    more: bool = False


class RoomWatch:
    """Wake those who look into rooms that they are not in; the notifier knows only who is."""

    def __init__(self, *, tail: Tail) -> None:
        self._waiters: dict[str, set[Waiter]] = {}
        tail.listen(self._apply)

    @contextmanager
    def watching(self, room_id: str, waiter: Waiter) -> Iterator[None]:
        """Have a waiter woken by events of a room."""
        self._waiters.setdefault(room_id, set()).add(waiter)
        try:
            yield
        finally:
            waiters = self._waiters[room_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[room_id]

    def _apply(self, rows: Sequence[Row]) -> None:
        if not self._waiters:
            return
        for row in rows:
            if isinstance(row, EventRow):
                for waiter in self._waiters.get(row.room_id, ()):
                    waiter.wake()


class EventStream:
    """Make answers of ``/events``, waiting where there is nothing to tell."""

    def __init__(
        self,
        *,
        tail: Tail,
        ahead: Ahead,
        bus: Bus,
        clock: Clock,
        notifier: Notifier,
        memberships: Memberships,
        access: RoomAccess,
        visibility: Visibility,
        timeline: Timeline,
        events: EventStore,
        renderer: Renderer,
        ignored: IgnoredUsers,
        invites_blocked: InvitesBlocked,
        user_sections: Sequence[UserSection],
        room_sections: Sequence[RoomSection],
    ) -> None:
        self._tail = tail
        self._ahead = ahead
        self._bus = bus
        self._clock = clock
        self._notifier = notifier
        self._memberships = memberships
        self._access = access
        self._visibility = visibility
        self._timeline = timeline
        self._events = events
        self._renderer = renderer
        self._ignored = ignored
        self._invites_blocked = invites_blocked
        self._user_sections = user_sections
        self._room_sections = room_sections
        self._watch = RoomWatch(tail=tail)

    async def answer(self, request: StreamRequest) -> bytes:
        """Give the JSON of an answer: at once, or when there is something to tell, or after the timeout.

        Raises 403 ``M_FORBIDDEN`` for a room into which the user may not look.
        """
        deadline = self._clock.now_ms() + request.timeout_s * 1000
        since = request.since
        if since is not None:
            await self._ahead.reach(since.pos)
        with await self._notifier.waiter(request.actor.user_id) as waiter:
            since = since or self._now(None)
            if request.room_id is None:
                return await self._follow(request, since, waiter, deadline)
            with self._watch.watching(request.room_id, waiter):
                return await self._follow(request, since, waiter, deadline)

    async def _follow(self, request: StreamRequest, since: Token, waiter: Waiter, deadline: float) -> bytes:
        while True:
            if request.room_id is None:
                piece = await self._of_user(request, since)
            else:
                piece = await self._of_room(request, since, request.room_id)
            left_s = (deadline - self._clock.now_ms()) / 1000
            if piece.chunk or piece.more or self._notifier.closed or not await waiter.wait(left_s):
                return _written(since, piece)

    def _now(self, since: Token | None) -> Token:
        return Token(self._tail.pos, *self._bus.ephemeral_now()).counting_from(since)

    # -- one room --------------------------------------------------------------------------------------

    async def _of_room(self, request: StreamRequest, since: Token, room_id: str) -> _Piece:
        """Give the events of one room that the user may see.

        "For clients which have not joined a room, servers are required to only return events where the room
        state at the event had … `world_readable`": that is what their sight of the room is made of.
        """
        now = self._now(since)
        view = await self._access.access_room(request.actor, room_id)
        page = await self._timeline.forwards(
            view,
            after=since.pos,
            upto=now.pos,
            limit=MAX_EVENTS,
            filter=_EVERY_EVENT,
            ignored=await self._ignored.of(view.user_id),
        )
        end = now if page.end is None else since._replace(pos=page.end)
        return _Piece(await self._render(request, page.rows), end, page.end is not None)

    # -- everything ------------------------------------------------------------------------------------

    async def _of_user(self, request: StreamRequest, since: Token) -> _Piece:
        """Give the events of the user's rooms, and what else they are told of."""
        user_id = request.actor.user_id
        now = self._now(since)
        memberships = dict(await self._memberships.of(user_id))
        rows = await self._rows(memberships.values(), since.pos, now.pos)
        more = len(rows) > MAX_EVENTS
        # What is not stored is told with the last piece.
        end = since._replace(pos=rows[MAX_EVENTS - 1].pos) if more else now
        chunk = await self._render(request, await self._seen(user_id, rows[:MAX_EVENTS]))
        context = SyncContext(
            user_id=user_id,
            device_id=request.device_id,
            filter=NO_FILTER,
            since=since,
            upto=end,
            joined=[m.room_id for m in memberships.values() if m.membership == "join"],
            newly_joined=frozenset(),
            left=frozenset(),
            in_tail=since.pos >= self._tail.start,
        )
        # NOTSPEC: its list is of events of rooms. Clients that still use this heard of typing, receipts,
        # presence and account data here, too, and have no other way to.
        for room_section in self._room_sections:
            for room_id, events in (await room_section.since(context)).items():
                chunk += [with_room_id(room_id, event) for event in events]
        for user_section in self._user_sections:
            if events_json := events_of(await user_section.since(context)):
                chunk.append(events_json)
        if context.in_tail and since.pos < self._tail.start:
            # Rows left the tail before every section had read them: the database has them.
            return await self._of_user(request, since)
        return _Piece(chunk, end, more)

    async def _rows(self, memberships: Iterable[Membership], after: int, upto: int) -> list[EventRow]:
        """Read the first events after a position, in order: one more than are told, if there are so many."""
        spans = [span for m in memberships if (span := _span(m, after, upto)) is not None]
        if after < self._tail.start:
            return await self._events.first_of_rooms(spans, limit=MAX_EVENTS + 1)
        active = set(self._tail.rooms_with_events([span.room_id for span in spans], after))
        rows = [
            row
            for span in spans
            if span.room_id in active
            for row in self._tail.events_of_room(span.room_id, span.after, span.upto)[: MAX_EVENTS + 1]
        ]
        return sorted(rows, key=_pos)[: MAX_EVENTS + 1]

    async def _seen(self, user_id: str, rows: Sequence[EventRow]) -> list[EventRow]:
        sights = await self._visibility.sights({row.room_id: row.room_nid for row in rows}, user_id)
        ignored = await self._ignored.of(user_id)
        wanted = wanted_by(_EVERY_EVENT, ignored)
        told = [
            row
            for row in rows
            if _is_told(row, user_id, sights[row.room_id]) and (wanted is None or wanted(row))
        ]
        invites = {row.pos for row in told if row.membership == "invite" and row.state_key == user_id}
        if not invites:
            return told
        blocked = await self._invites_blocked(user_id)
        return [row for row in told if row.pos not in invites or not (blocked or row.sender in ignored)]

    async def _render(self, request: StreamRequest, rows: Sequence[EventRow]) -> list[bytes]:
        rendering = await self._renderer.prepare(
            rows, user_id=request.actor.user_id, device_id=request.device_id
        )
        return [rendering.event(row) for row in rows]


def _span(m: Membership, after: int, upto: int) -> TimelineSpan | None:
    """Give the part of a room's timeline in which there may be something to tell its (former) member."""
    if m.membership == "join":
        return TimelineSpan(m.room_id, m.room_nid, after, upto)
    if not after < m.pos <= upto:
        return None
    # An invited or knocking user is told of no more than that.
    first = after if m.membership in ("leave", "ban") else m.pos - 1
    return TimelineSpan(m.room_id, m.room_nid, first, m.pos)


def _is_told(row: EventRow, user_id: str, sight: Sight) -> bool:
    """Tell whether somebody hears of an event as it happens: as a member, or as it is about them."""
    if row.type == MEMBER and row.state_key == user_id:
        return True
    return sight.sees(row.pos) and sight.membership_at(row.pos) == "join"


def _pos(row: EventRow) -> int:
    return row.pos


def _written(start: Token, piece: _Piece) -> bytes:
    return b'{"start":"%b","end":"%b","chunk":[%b]}' % (
        str(start).encode(),
        str(piece.end).encode(),
        b",".join(piece.chunk),
    )


def with_room_id(room_id: str, event: bytes) -> bytes:
    """Say in an event (a JSON object that is not empty) in which room it happened."""
    return b'{"room_id":%b,%b' % (orjson.dumps(room_id), event[1:])


_BEFORE_EVENTS: Final = b'{"events":['


def events_of(section: bytes | None) -> bytes:
    """Give the events of a section of ``/sync``, with commas between; empty where there are none."""
    if section is None:
        return b""
    assert section.startswith(_BEFORE_EVENTS), section[:100]
    return section[len(_BEFORE_EVENTS) : -2]
