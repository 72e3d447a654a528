"""The rooms of a sync answer: which ones, their timeline and their state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Membership
from ranvier.rooms.room import MEMBER
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.visibility import Sight, Visibility
from ranvier.spec.event import StateKey
from ranvier.spec.filters import Filter
from ranvier.storage.events import EventStore
from ranvier.storage.rooms import RoomStore
from ranvier.sync.state_at import State, StateAt
from ranvier.sync.windows import DEFAULT_LIMIT, MAX_LIMIT, Span, Window, Windows, cut, event_filter
from ranvier.wire.log_rows import EventRow

_SUMMED_UP = (MEMBER, "m.room.name", "m.room.canonical_alias")
_REMEMBERED_DEVICES = 2000
_REMEMBERED_MEMBERS = 2000


class RoomAnswer(NamedTuple):
    """What is told of one room: its window, and the state (before the window, or after it).

    ``summary_changed`` says that who is in the room, or what names it, changed.
    """

    room_id: str
    window: Window
    state: list[EventRow]
    summary_changed: bool


class Asked(NamedTuple):
    """How an answer is to be made: ``state_after`` gives the state after the timeline, not before it."""

    user_id: str
    device_id: str | None
    filter: Filter
    ignored: frozenset[str]
    upto: int
    since: int | None
    full_state: bool
    state_after: bool


class RoomSections:
    """Make the timeline and state of rooms, for a first sync and for what came since."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        tail: Tail,
        events: EventStore,
        store: RoomStore,
        visibility: Visibility,
    ) -> None:
        self._rooms = rooms
        self._tail = tail
        self._events = events
        self._store = store
        self._visibility = visibility
        self._windows = Windows(tail=tail, events=events)
        self._state_at = StateAt(rooms=rooms, tail=tail, events=events, store=store)
        self._members_sent = _MembersSent()

    async def whole(self, asked: Asked, rooms: Iterable[Membership]) -> list[RoomAnswer]:
        """Tell rooms from the beginning: the end of their timeline and all of the state."""
        known = {m.room_id: m for m in rooms}
        if not known:
            return []
        wanted = event_filter(asked.filter.room.timeline, asked.ignored)
        spans = [Span(m.room_id, m.room_nid, 0, _end(m, asked.upto)) for m in known.values()]
        windows = await self._windows.latest(spans, _limit(asked.filter), wanted)
        sights = await self._visibility.sights({s.room_id: s.room_nid for s in spans}, asked.user_id)
        windows = {id_: _seen(asked, window, sights[id_]) for id_, window in windows.items()}
        ends = {span.room_id: _state_end(asked, known, span, sights) for span in spans}
        states = await self._states(asked, windows, ends)
        return [
            RoomAnswer(room_id, window, self._whole_state(asked, room_id, states[room_id], window), True)
            for room_id, window in windows.items()
        ]

    async def since(self, asked: Asked, rooms: Iterable[Membership]) -> list[RoomAnswer]:
        """Tell what came after ``asked.since`` in rooms that the client knows; rooms without are left out."""
        assert asked.since is not None
        known = {m.room_id: m for m in rooms}
        in_tail = asked.since >= self._tail.start
        all_asked = asked.full_state or not in_tail
        active = list(known) if all_asked else self._tail.rooms_with_events(known, asked.since)
        if not active:
            return []
        wanted = event_filter(asked.filter.room.timeline, asked.ignored)
        spans = [Span(id_, known[id_].room_nid, asked.since, _end(known[id_], asked.upto)) for id_ in active]
        windows = await self._windows.latest(spans, _limit(asked.filter), wanted)
        # Who is joined sees all that comes.
        left = {id_: known[id_].room_nid for id_ in active if known[id_].membership != "join"}
        if sights := await self._visibility.sights(left, asked.user_id):
            windows |= {id_: _seen(asked, windows[id_], sight) for id_, sight in sights.items()}
            spans = [span._replace(upto=_state_end(asked, known, span, sights)) for span in spans]
        if asked.full_state:
            return await self._full(asked, spans, windows, in_tail=in_tail)
        answers = []
        for span in spans:
            window = windows[span.room_id]
            if not window.rows and not window.limited and in_tail and wanted is None:
                continue
            answers.append(await self._answer_since(asked, span, window, in_tail=in_tail))
        return [a for a in answers if a.window.rows or a.state or a.window.limited or a.summary_changed]

    async def left(self, asked: Asked, rooms: Sequence[Membership]) -> list[RoomAnswer]:
        """Tell rooms that the user left: what they saw until then, and the member event that says so.

        Who was not in a room after ``asked.since`` (who declines an invitation, takes a knock back or is
        banned from outside) is told of that event alone; who joined it after that, of all of its state.
        """
        if not rooms:
            return []
        sights = await self._visibility.sights({m.room_id: m.room_nid for m in rooms}, asked.user_id)
        after = asked.since or 0
        known, fresh, outside = list[Membership](), list[Membership](), list[Membership]()
        for m in rooms:
            sight = sights[m.room_id]
            if sight.in_room_until(max(m.pos, asked.upto)) <= after:
                outside.append(m)
            else:
                (known if sight.membership_at(after) == "join" else fresh).append(m)
        answers = await self.whole(asked, fresh)
        if known:
            answers += await self.since(asked, known)
        if asked.state_after:
            answers = [_with_own(asked, answer) for answer in answers]
        return answers + await self._own_events(asked, outside)

    async def _own_events(self, asked: Asked, rooms: Sequence[Membership]) -> list[RoomAnswer]:
        """Tell of rooms no more than the user's own member event, as it is now."""
        wanted = event_filter(asked.filter.room.timeline, asked.ignored)
        rows = await self._events.by_nids([m.event_nid for m in rooms])
        answers = []
        for m in rooms:
            if (row := rows.get(m.event_nid)) is None:
                continue  # purged meanwhile
            # One that came with the state of a room from elsewhere is not in the timeline.
            timeline = [row] if row.pos else []
            window = cut(timeline, _limit(asked.filter), wanted, m.pos - 1)
            state = [] if window.rows and not asked.state_after else _filtered(asked.filter, [row])
            answers.append(RoomAnswer(row.room_id, window, state, True))
        return answers

    def has_sent_members(
        self, user_id: str, device_id: str | None, room_id: str, members: Iterable[str]
    ) -> bool:
        """Tell whether a device that lazy-loads members surely has the member events of these users."""
        room = self._rooms.held(room_id)
        sent = self._members_sent.of(user_id, device_id, room_id)
        if room is None or not sent:
            return False
        state = room.state
        return all((row := state.get((MEMBER, it))) is not None and row.event_nid in sent for it in members)

    def forget_members_sent(self, user_id: str, device_id: str | None) -> None:
        """Know that a device did not get the answer that was made for it last."""
        self._members_sent.forget(user_id, device_id)

    async def _full(
        self, asked: Asked, spans: Sequence[Span], windows: Mapping[str, Window], *, in_tail: bool
    ) -> list[RoomAnswer]:
        """Tell all of the state of rooms that the client knows (``full_state``), changed or not."""
        changed: dict[str, list[EventRow]] = {}
        if asked.filter.room.state.lazy_load_members:
            for span in spans:
                rows = self._tail.events_of_room(span.room_id, span.after, span.upto) if in_tail else None
                changes, _ = await self._changes(span, windows[span.room_id], rows, asked.state_after)
                changed[span.room_id] = [row for row in changes if row.type == MEMBER]
        states = await self._states(asked, windows, {span.room_id: span.upto for span in spans})
        answers = []
        for room_id, window in windows.items():
            state = self._whole_state(asked, room_id, states[room_id], window)
            told = {row.event_nid for row in state}
            state += [row for row in changed.get(room_id, ()) if row.event_nid not in told]
            answers.append(RoomAnswer(room_id, window, state, True))
        return answers

    async def _answer_since(self, asked: Asked, span: Span, window: Window, *, in_tail: bool) -> RoomAnswer:
        rows = self._tail.events_of_room(span.room_id, span.after, span.upto) if in_tail else None
        state: list[EventRow] = []
        changed: Iterable[StateKey] = ()
        if rows is None or any(row.state_changes for row in rows):
            state, changed = await self._changes(span, window, rows, asked.state_after)
        if asked.filter.room.state.lazy_load_members:
            state = await self._lazy(asked, span, window, state)
        state = _filtered(asked.filter, state)
        # Whatever the filter hides: the summary says who is there.
        return RoomAnswer(span.room_id, window, state, any(type_ in _SUMMED_UP for type_, _ in changed))

    async def _changes(
        self, span: Span, window: Window, rows: list[EventRow] | None, state_after: bool
    ) -> tuple[list[EventRow], Iterable[StateKey]]:
        """Give the state that changed before the window (or until its end), and all changed keys."""
        shown = set() if state_after else {row.event_nid for row in window.rows}
        if rows is not None and all(_is_plain(row) for row in rows):
            latest = {row.key: row for row in rows if row.state_changes and row.event_nid not in shown}
            # What the window changes further is told there.
            return list(latest.values()), {row.key for row in rows if row.state_changes}
        changed = await self._store.changed_keys(span.room_nid, span.after, span.upto)
        nids = [nid for nid in changed.values() if nid is not None and nid not in shown]
        before: dict[StateKey, EventRow] = {
            row.key: row for row in (await self._events.by_nids(nids)).values()
        }
        if not state_after and window.limited:
            # A key that changed in the window may have changed before it, too: to something older.
            start = min(window.start, span.upto)
            earlier = await self._store.changed_keys(span.room_nid, span.after, start)
            hidden = {key: nid for key, nid in earlier.items() if key not in before and nid is not None}
            before.update((row.key, row) for row in (await self._events.by_nids(hidden.values())).values())
        return list(before.values()), changed

    async def _states(
        self, asked: Asked, windows: Mapping[str, Window], ends: Mapping[str, int]
    ) -> dict[str, State]:
        """Give the states that answers begin with: those before the windows, or at their ends."""
        positions = dict(ends)
        if not asked.state_after:
            for room_id, window in windows.items():
                if window.rows:
                    positions[room_id] = min(ends[room_id], window.rows[0].pos - 1)
        if not asked.filter.room.state.lazy_load_members:
            return await self._state_at.of(positions)
        shown = {room_id: _senders(window) | {asked.user_id} for room_id, window in windows.items()}
        return await self._state_at.of(positions, shown)

    def _whole_state(self, asked: Asked, room_id: str, state: State, window: Window) -> list[EventRow]:
        filter_ = asked.filter.room.state
        if not filter_.lazy_load_members:
            return _filtered(asked.filter, list(state.values()))
        if not filter_.include_redundant_members:
            self._members_sent.reset(asked, room_id)
        rows = list(state.values())
        self._members_sent.add(asked, [row for row in rows if row.type == MEMBER])
        return _filtered(asked.filter, rows)

    async def _lazy(self, asked: Asked, span: Span, window: Window, state: list[EventRow]) -> list[EventRow]:
        """Add the members that the client needs to show the window and may not have.

        Source: client-server API, "Lazy-loading room members": what changed in a gap must be told all the
        same, because the client may have the member from before.
        """
        room = await self._rooms.get(span.room_id)
        needed = _senders(window)
        told = {row.state_key for row in state if row.type == MEMBER}
        told |= {row.state_key for row in window.rows if row.type == MEMBER} if asked.state_after else set()
        members = [
            row for user in needed - told if (row := room.state.get((MEMBER, user))) and row.pos <= span.upto
        ]
        if not asked.filter.room.state.include_redundant_members:
            members = self._members_sent.without(asked, members)
        self._members_sent.add(asked, [*members, *(row for row in state if row.type == MEMBER)])
        return state + members


def _end(membership: Membership, upto: int) -> int:
    """Give where the user's view of a room ends."""
    if membership.membership in ("leave", "ban"):
        return min(membership.pos, upto)
    return upto


def _state_end(asked: Asked, known: Mapping[str, Membership], span: Span, sights: Mapping[str, Sight]) -> int:
    """Give until when the user is told of a room's state: while they are in it.

    Who left may have been invited or banned since, which ends the view and adds nothing to it.
    """
    m = known[span.room_id]
    if m.membership == "join":
        return span.upto
    return min(span.upto, sights[span.room_id].in_room_until(max(m.pos, asked.upto)))


def _seen(asked: Asked, window: Window, sight: Sight) -> Window:
    """Cut a window to what comes after the last event that the user may not see.

    State that changed there and held on is told as the state before the window.
    """
    if sight.everything:
        return window
    rows = window.rows
    for number in range(len(rows), 0, -1):
        row = rows[number - 1]
        if not sight.sees(row.pos) and not _is_own(asked, row):
            return Window(rows[number:], limited=True, start=row.pos)
    return window


def _is_own(asked: Asked, row: EventRow) -> bool:
    return row.type == MEMBER and row.state_key == asked.user_id


def _with_own(asked: Asked, answer: RoomAnswer) -> RoomAnswer:
    """Have the state after a window say what it ends with: a ban, perhaps, of who had left already."""
    own = _filtered(asked.filter, [row for row in answer.window.rows[-1:] if _is_own(asked, row)])
    state = [row for row in answer.state if not own or not _is_own(asked, row)]
    return answer._replace(state=state + own)


def _limit(filter_: Filter) -> int:
    limit = filter_.room.timeline.limit
    return DEFAULT_LIMIT if limit is None else min(limit, MAX_LIMIT)


def _is_plain(row: EventRow) -> bool:
    return not row.state_changes or (
        row.state_key is not None and len(row.state_changes) == 1 and row.state_changes[0] == row.key
    )


def _senders(window: Window) -> set[str]:
    return {row.sender for row in window.rows}


def _filtered(filter_: Filter, rows: list[EventRow]) -> list[EventRow]:
    state = filter_.room.state
    if state.is_everything:
        return rows
    return [
        row
        for row in rows
        if state.matches(row.type, row.sender, row.room_id, has_url=isinstance(row.content.get("url"), str))
    ]


class _MembersSent:
    """Remember which member events each device got in lazy-loaded answers, for the devices used last.

    Forgetting costs no more than telling a member again.
    """

    def __init__(self) -> None:
        self._sent: OrderedDict[tuple[str, str | None], dict[str, set[int]]] = OrderedDict()

    def reset(self, asked: Asked, room_id: str) -> None:
        self._sent.get((asked.user_id, asked.device_id), {}).pop(room_id, None)

    def forget(self, user_id: str, device_id: str | None) -> None:
        self._sent.pop((user_id, device_id), None)

    def of(self, user_id: str, device_id: str | None, room_id: str) -> Set[int]:
        return self._sent.get((user_id, device_id), {}).get(room_id, frozenset())

    def without(self, asked: Asked, members: list[EventRow]) -> list[EventRow]:
        sent = self._sent.get((asked.user_id, asked.device_id), {})
        return [row for row in members if row.event_nid not in sent.get(row.room_id, ())]

    def add(self, asked: Asked, members: Sequence[EventRow]) -> None:
        if not members:
            return
        key = (asked.user_id, asked.device_id)
        rooms = self._sent.setdefault(key, {})
        self._sent.move_to_end(key)
        for row in members:
            sent = rooms.setdefault(row.room_id, set())
            if len(sent) < _REMEMBERED_MEMBERS:
                sent.add(row.event_nid)
        while len(self._sent) > _REMEMBERED_DEVICES:
            self._sent.popitem(last=False)
