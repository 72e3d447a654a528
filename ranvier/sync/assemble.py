"""``/sync`` version 3: asks the sections and puts their bytes together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ranvier.log.bus import Bus
from ranvier.log.tail import Tail
from ranvier.rooms.actor import InvitesBlocked
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.spec.filters import Filter
from ranvier.storage.events import EventStore
from ranvier.storage.rooms import RoomStore
from ranvier.sync.ahead import Ahead
from ranvier.sync.context import RoomSection, SyncContext, UnreadCounts, UnreadSection, UserSection
from ranvier.sync.notifier import Notifier
from ranvier.sync.plain import PlainNews, is_plain_filter
from ranvier.sync.render import Renderer, Rendering
from ranvier.sync.sections.rooms import Asked, RoomAnswer, RoomSections
from ranvier.sync.summary import room_summary
from ranvier.wire.log_rows import EventRow, LogRow
from ranvier.wire.tokens import Token

_Pieces = list[bytes]
"""What an answer is joined of, once."""


class UserSets(Protocol):
    """Give a set of ids for a user (ignored users, forgotten rooms)."""

    def __call__(self, user_id: str, /) -> Awaitable[frozenset[str]]: ...


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """What a client asks of ``/sync``; ``timeout_s`` is how long it waits for something to tell."""

    user_id: str
    device_id: str | None
    filter: Filter
    since: Token | None = None
    timeout_s: float = 0.0
    full_state: bool = False
    state_after: bool = False


class _Changes:
    """The rooms of one user, sorted by what an answer has to do with them."""

    def __init__(self) -> None:
        self.joined: list[Membership] = []
        self.newly_joined: list[Membership] = []
        self.known: list[Membership] = []
        self.left: list[Membership] = []
        self.invited: list[Membership] = []
        self.knocked: list[Membership] = []


class SyncAssembler:
    """Make answers of ``/sync``, waiting where there is nothing to tell.

    ``user_sections`` gives each top-level key its section; ``room_sections`` the sections that make each
    list of events within a joined room (``ephemeral``, ``account_data``).
    """

    def __init__(
        self,
        *,
        tail: Tail,
        ahead: Ahead,
        bus: Bus,
        notifier: Notifier,
        memberships: Memberships,
        rooms: Rooms,
        store: RoomStore,
        events: EventStore,
        renderer: Renderer,
        room_answers: RoomSections,
        unread: UnreadSection,
        user_sections: Mapping[str, UserSection],
        room_sections: Mapping[str, Sequence[RoomSection]],
        ignored: UserSets,
        invites_blocked: InvitesBlocked,
        forgotten: UserSets,
        now_ms: Callable[[], int],
        plain: PlainNews,
    ) -> None:
        self._tail = tail
        self._ahead = ahead
        self._bus = bus
        self._notifier = notifier
        self._memberships = memberships
        self._rooms = rooms
        self._store = store
        self._events = events
        self._renderer = renderer
        self._room_answers = room_answers
        self._unread = unread
        self._user_sections = user_sections
        self._room_sections = room_sections
        self._ignored = ignored
        self._invites_blocked = invites_blocked
        self._forgotten = forgotten
        self._now_ms = now_ms
        self._plain = plain

    async def answer(self, request: SyncRequest) -> bytes:
        """Give the JSON of an answer: at once, or when there is something to tell, or after the timeout."""
        since = request.since
        if since is not None and since.pos > self._tail.pos:
            await self._ahead.reach(since.pos)
        if since is None or request.full_state or request.timeout_s <= 0:
            return (await self._make(request))[0]
        deadline = self._now_ms() + request.timeout_s * 1000
        with await self._notifier.waiter(request.user_id) as waiter:
            if self._plain.is_quiet(request.user_id, waiter.rooms, since) and not self._notifier.closed:
                await waiter.wait(request.timeout_s)
            while True:
                if (plain := self._plain_answer(request, since)) is not None:
                    return plain
                body, news = await self._make(request)
                left_s = (deadline - self._now_ms()) / 1000
                if news or self._notifier.closed or not await waiter.wait(left_s):
                    return body

    def _plain_answer(self, request: SyncRequest, since: Token) -> bytes | None:
        if not is_plain_filter(request.filter):
            return None
        return self._plain.answer(
            request.user_id, request.device_id, since, request.filter, state_after=request.state_after
        )

    async def _make(self, request: SyncRequest) -> tuple[bytes, bool]:
        """Make one answer, and say whether it tells anything."""
        count, epoch = self._bus.ephemeral_now()
        memberships = await self._memberships.of(request.user_id)
        since = request.since
        upto = Token(self._tail.pos, count, epoch).counting_from(since)
        changes = await self._sort(request, list(memberships.values()), upto.pos)
        context = SyncContext(
            user_id=request.user_id,
            device_id=request.device_id,
            filter=request.filter,
            since=since,
            upto=upto,
            joined=[m.room_id for m in changes.joined],
            newly_joined=frozenset(m.room_id for m in changes.newly_joined),
            left=frozenset(m.room_id for m in changes.left),
            in_tail=since is not None and since.pos >= self._tail.start,
            full_state=request.full_state,
        )
        parts: list[_Pieces] = []
        news = since is None or request.full_state
        for key, section in self._user_sections.items():
            value = await (section.initial(context) if since is None else section.since(context))
            if value is not None:
                parts.append([b'"%b":' % key.encode(), value])
                news = news or not _always_told(key)
        rooms = await self._make_rooms(request, context, changes)
        if rooms:
            parts.append(rooms)
            news = True
        elif not news and since is not None:
            news = any(
                row.kind == "otk" and row.device_id == context.device_id for row in self._user_rows(context)
            )
        if context.in_tail and since is not None and since.pos < self._tail.start:
            # Rows left the tail before every section had read them: the database has them.
            self._room_answers.forget_members_sent(request.user_id, request.device_id)
            return await self._make(request)
        parts.insert(0, [b'"next_batch":"%b"' % str(upto).encode()])
        return b"".join([b"{", *_separated(parts), b"}"]), news

    def _user_rows(self, context: SyncContext) -> Sequence[LogRow]:
        """Give what came since and concerns the user alone, as far as the tail knows."""
        if not context.in_tail or context.since is None:
            return ()
        return self._tail.rows_of_user(context.user_id, context.since.pos)

    # -- which rooms -----------------------------------------------------------------------------------

    async def _sort(self, request: SyncRequest, memberships: list[Membership], upto: int) -> _Changes:
        changes = _Changes()
        since = request.since.pos if request.since is not None else None
        wanted = request.filter.room
        forgotten: frozenset[str] | None = None
        for m in memberships:
            if not wanted.matches_room(m.room_id):
                continue
            changed = since is None or m.pos > since
            if m.membership == "join":
                changes.joined.append(m)
                new = since is None or (changed and await self._newly_joined(request.user_id, m, since, upto))
                (changes.newly_joined if new else changes.known).append(m)
            elif not changed:
                continue
            elif m.membership == "invite":
                # "invite events for this user already in the database … MUST NOT be served over client
                # synchronisation endpoints" while invites are blocked
                blocked = await self._invites_blocked(request.user_id)
                if not blocked and m.sender not in await self._ignored(request.user_id):
                    changes.invited.append(m)
            elif m.membership == "knock":
                changes.knocked.append(m)
            elif since is not None or wanted.include_leave:
                if forgotten is None:
                    forgotten = await self._forgotten(request.user_id)
                if m.room_id not in forgotten:
                    changes.left.append(m)
        return changes

    async def _newly_joined(self, user_id: str, membership: Membership, since: int, upto: int) -> bool:
        """Tell whether a user joined after ``since``, or only changed the member event of an older join."""
        if membership.since is not None:
            return membership.since > since
        changed = await self._store.membership_changes(user_id, since, upto)
        nids = [c.event_nid for c in changed if c.room_id == membership.room_id and c.event_nid is not None]
        rows = sorted((await self._events.by_nids(nids)).values(), key=lambda row: row.pos)
        if any(row.membership != "join" for row in rows):
            return True
        replaced = rows[0].replaces_nid if rows else None
        if replaced is None:
            return True
        before = (await self._events.by_nids([replaced])).get(replaced)
        return before is None or before.membership != "join"

    # -- rooms -----------------------------------------------------------------------------------------

    async def _make_rooms(self, request: SyncRequest, context: SyncContext, changes: _Changes) -> _Pieces:
        asked = Asked(
            user_id=request.user_id,
            device_id=request.device_id,
            filter=request.filter,
            ignored=await self._ignored(request.user_id),
            upto=context.upto.pos,
            since=context.since.pos if context.since is not None else None,
            full_state=request.full_state,
            state_after=request.state_after,
        )
        fresh = await self._room_answers.whole(asked, changes.newly_joined)
        known = await self._room_answers.since(asked, changes.known) if asked.since is not None else []
        left = await self._room_answers.left(asked, changes.left)
        extras = await self._extras(context)
        answers = {answer.room_id: answer for answer in (*fresh, *known)}
        unread = await self._unread_counts(context, answers, extras)
        told = [id_ for id_ in context.joined if id_ in answers or id_ in unread or _has(extras, id_)]
        rendering = await self._render(request, [*answers.values(), *left], context, asked.ignored)
        joined = [
            await self._joined(request, id_, answers.get(id_), rendering, extras, unread) for id_ in told
        ]
        groups = [
            (b"join", joined),
            (b"leave", [_room(a.room_id, await _timeline_parts(request, a, rendering)) for a in left]),
            (b"invite", await self._stripped(changes.invited, b"invite_state", "invite_room_state")),
            (b"knock", await self._stripped(changes.knocked, b"knock_state", "knock_room_state")),
        ]
        return _rooms(groups)

    async def _extras(self, context: SyncContext) -> dict[str, dict[str, list[bytes]]]:
        """Give, per list of events within a room, what its sections have for each room."""
        fresh = [room_id for room_id in context.joined if room_id in context.newly_joined]
        extras: dict[str, dict[str, list[bytes]]] = {}
        for name, sections in self._room_sections.items():
            rooms = extras[name] = {}
            for section in sections:
                if fresh:
                    _merge(rooms, await section.initial(context, fresh))
                if context.since is not None:
                    known = await section.since(context)
                    _merge(
                        rooms,
                        {id_: events for id_, events in known.items() if id_ not in context.newly_joined},
                    )
        return extras

    async def _unread_counts(
        self,
        context: SyncContext,
        answers: Mapping[str, RoomAnswer],
        extras: Mapping[str, Mapping[str, list[bytes]]],
    ) -> Mapping[str, UnreadCounts]:
        if context.since is None:
            return await self._unread.initial(context, context.joined)
        own = {row.room_id if row.kind == "receipt" else row.kind for row in self._user_rows(context)}
        if "push_rules" in own:
            return await self._unread.since(context, context.joined)
        told = extras.get("ephemeral", ())
        changed = [id_ for id_ in context.joined if id_ in answers or id_ in told or id_ in own]
        return await self._unread.since(context, changed) if changed else {}

    async def _render(
        self,
        request: SyncRequest,
        answers: Sequence[RoomAnswer],
        context: SyncContext,
        ignored: frozenset[str],
    ) -> Rendering:
        rows: list[EventRow] = []
        for answer in answers:
            rows.extend(answer.window.rows)
            rows.extend(answer.state)
        return await self._renderer.prepare(
            rows,
            user_id=request.user_id,
            device_id=request.device_id,
            filter=request.filter,
            from_tail=context.in_tail,
            # "in /sync for limited timelines": what relates to an event may not be in the timeline
            bundled=[row for answer in answers if answer.window.limited for row in answer.window.rows],
            ignored=ignored,
            with_room_id=False,
        )

    async def _joined(
        self,
        request: SyncRequest,
        room_id: str,
        answer: RoomAnswer | None,
        rendering: Rendering,
        extras: Mapping[str, Mapping[str, list[bytes]]],
        unread: Mapping[str, UnreadCounts],
    ) -> _Pieces:
        parts: list[_Pieces] = []
        if answer is not None:
            parts = await _timeline_parts(request, answer, rendering)
            room = await self._rooms.find(room_id) if answer.summary_changed else None
            if room is not None:
                parts.append([b'"summary":', room_summary(room, request.user_id)])
        for name, rooms in extras.items():
            if (events := rooms.get(room_id)) is not None:
                parts.append([b'"%b":{"events":[%b]}' % (name.encode(), b",".join(events))])
        if (counts := unread.get(room_id)) is not None:
            threads = request.filter.room.timeline.unread_thread_notifications
            parts.extend([part] for part in counts.parts(threads=threads))
        return _room(room_id, parts)

    async def _stripped(
        self, memberships: Sequence[Membership], key: bytes, unsigned_key: str
    ) -> list[_Pieces]:
        """Give rooms that the user is not in yet, by the few state events that came with the invite."""
        if not memberships:
            return []
        rows = await self._events.by_nids([m.event_nid for m in memberships])
        rooms = []
        for membership in memberships:
            row = rows[membership.event_nid]
            given = row.event.pdu.get("unsigned", {}).get(unsigned_key, [])
            events = [*(e for e in given if isinstance(e, dict)), row.event.pdu]
            stripped = orjson.dumps([_strip(event) for event in events])
            rooms.append(_room(membership.room_id, [[b'"%b":{"events":%b}' % (key, stripped)]]))
        return rooms


def _always_told(key: str) -> bool:
    """Tell whether a key is in every answer, so that it is no news."""
    return key in ("device_one_time_keys_count", "device_unused_fallback_key_types")


def _has(extras: Mapping[str, Mapping[str, list[bytes]]], room_id: str) -> bool:
    return any(room_id in rooms for rooms in extras.values())


def _merge(rooms: dict[str, list[bytes]], more: Mapping[str, list[bytes]]) -> None:
    for room_id, events in more.items():
        if events:
            rooms.setdefault(room_id, []).extend(events)


def _strip(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: event[key] for key in ("type", "state_key", "sender", "content") if key in event}


def _room(room_id: str, parts: Iterable[_Pieces]) -> _Pieces:
    return [orjson.dumps(room_id), b":{", *_separated(parts), b"}"]


def _rooms(groups: Iterable[tuple[bytes, Sequence[_Pieces]]]) -> _Pieces:
    named = [[b'"%b":{' % name, *_separated(rooms), b"}"] for name, rooms in groups if rooms]
    return [b'"rooms":{', *_separated(named), b"}"] if named else []


def _separated(parts: Iterable[_Pieces]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        if number:
            yield b","
        yield from part


async def _timeline_parts(request: SyncRequest, answer: RoomAnswer, rendering: Rendering) -> list[_Pieces]:
    window = answer.window
    timeline = b'"timeline":{"events":[%b],"limited":%b,"prev_batch":"%b"}' % (
        b"".join(await rendering.event_list(window.rows)),
        b"true" if window.limited else b"false",
        str(Token(window.rows[0].pos - 1 if window.rows else window.start)).encode(),
    )
    key = b"state_after" if request.state_after else b"state"
    return [
        [timeline],
        [b'"%b":{"events":[' % key, *await rendering.event_list(answer.state), b"]}"],
    ]
