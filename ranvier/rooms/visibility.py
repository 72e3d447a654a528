"""What a user may see of a room's history: spans of the log, worked out once for each user and room."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

from ranvier.log.tail import Tail
from ranvier.rooms.room import MEMBER
from ranvier.spec.visibility import Visibility as HistoryVisibility
from ranvier.spec.visibility import may_see, visibility_of
from ranvier.storage.rooms import RoomStore, SightChange
from ranvier.wire.log_rows import PURGED_ROOM, EventRow, Row

HISTORY_VISIBILITY: Final = "m.room.history_visibility"
_SHARED: Final[HistoryVisibility] = "shared"
FIRST: Final = -(2**62)
LAST: Final = 2**62


class Span(NamedTuple):
    """The positions from ``first`` to ``last``, both included."""

    first: int
    last: int


EVERYTHING: Final = (Span(FIRST, LAST),)


class Sight:
    """Say which positions of one room's log a user may see, and what they were in it when.

    It stays true as the log goes on, until the user's membership or the history visibility changes.
    """

    __slots__ = ("_firsts", "_memberships", "_positions", "_visibilities", "everything", "spans")

    def __init__(
        self,
        spans: Sequence[Span],
        memberships: Sequence[tuple[int, str]],
        visibilities: Sequence[tuple[int, HistoryVisibility]],
    ) -> None:
        self.spans = tuple(spans)
        self.everything = self.spans == EVERYTHING
        self._firsts = [span.first for span in self.spans]
        self._positions = [pos for pos, _ in memberships]
        self._memberships = ["leave", *(membership for _, membership in memberships)]
        self._visibilities = tuple(visibilities)

    def sees(self, pos: int) -> bool:
        """Tell whether the user may see the event at a position."""
        if self.everything:
            return True
        index = bisect_right(self._firsts, pos) - 1
        return index >= 0 and pos <= self.spans[index].last

    def membership_at(self, pos: int) -> str:
        """Give what the user was just after the event at ``pos``: "leave" for a stranger."""
        if not self._positions or pos >= self._positions[-1]:
            return self._memberships[-1]
        return self._memberships[bisect_right(self._positions, pos)]

    def membership_before(self, pos: int) -> str:
        """Give what the user was just before the event at ``pos``."""
        return self._memberships[bisect_left(self._positions, pos)]

    def saw(self, pos: int, by: int, *, is_state: bool = False) -> bool:
        """Tell whether the user, as a member, had visibility of the event at ``pos`` before position ``by``.

        Who may look into a world-readable room without being a member does not count as having seen it. State
        was shown to whoever joined later, whatever the history visibility.
        """
        joined_later = self._joined_between(pos, by)
        memberships = (self.membership_before(pos), self.membership_at(pos))
        visibilities = (_SHARED,) if is_state else self._visibilities_around(pos)
        return any(
            may_see(_SHARED if visibility == "world_readable" else visibility, m, joined_later=joined_later)
            for visibility, m in product(visibilities, memberships)
        )

    def _joined_between(self, after: int, upto: int) -> bool:
        """Tell whether the user joined, or went on being joined, at a position in ``(after, upto]``."""
        first, last = bisect_right(self._positions, after), bisect_right(self._positions, upto)
        return "join" in self._memberships[first + 1 : last + 1]

    def _visibilities_around(self, pos: int) -> tuple[HistoryVisibility, HistoryVisibility]:
        """Give the history visibility before and after the event at ``pos``."""
        known = self._visibilities
        if pos < 0 and known:
            return known[0][1], known[0][1]
        before = bisect_left(known, pos, key=_position) - 1
        after = bisect_right(known, pos, key=_position) - 1
        unset = visibility_of(None)
        return known[before][1] if before >= 0 else unset, known[after][1] if after >= 0 else unset

    @property
    def left_at(self) -> int | None:
        """Position of the event with which the user was no longer joined; None for who is, or never was."""
        until = self.in_room_until(LAST)
        return None if until in (FIRST, LAST) else until

    def in_room_until(self, pos: int) -> int:
        """Give up to where a user, as of ``pos``, was in the room: ``pos`` itself, or where they left.

        ``FIRST`` for who never was.
        """
        memberships = self._memberships[: bisect_right(self._positions, pos) + 1]
        if memberships[-1] == "join":
            return pos
        if "join" not in memberships:
            return FIRST
        return self._positions[len(memberships) - 1 - memberships[::-1].index("join")]


def sight_of(changes: Sequence[SightChange]) -> Sight:
    """Work out what a user sees by every change of the visibility and of their membership, in order.

    "For m.room.history_visibility events themselves, the user should be allowed to see the event if the
    history_visibility before or after the event would allow them", and likewise for their member events.
    History from before this server was in the room (negative positions) counts as under the first
    visibility that is known.
    """
    last_join = max((c.pos for c in changes if c.type == MEMBER and c.value == "join"), default=FIRST)
    visibilities = [(c.pos, _visibility(c.value)) for c in changes if c.type == HISTORY_VISIBILITY]
    visible: list[Span] = []
    memberships: list[tuple[int, str]] = []
    membership: str | None = None
    visibility = visibility_of(None)
    start = 0
    first_visibility = visibilities[0][1] if visibilities else visibility
    if may_see(first_visibility, None, joined_later=last_join >= 0):
        visible.append(Span(FIRST, -1))
    for change in changes:
        if change.pos > start and may_see(visibility, membership, joined_later=last_join >= change.pos):
            visible.append(Span(start, change.pos - 1))
        before = (visibility, membership)
        if change.type == MEMBER:
            membership = change.value
            memberships.append((change.pos, membership or "leave"))
        else:
            visibility = _visibility(change.value)
        if may_see(
            visibility,
            membership,
            joined_later=last_join > change.pos,
            visibility_before=before[0],
            membership_before=before[1],
        ):
            visible.append(Span(change.pos, change.pos))
        start = change.pos + 1
    if may_see(visibility, membership, joined_later=False):
        visible.append(Span(start, LAST))
    return Sight(_merged(visible), memberships, visibilities)


def _position(change: tuple[int, HistoryVisibility]) -> int:
    return change[0]


def _visibility(value: str | None) -> HistoryVisibility:
    return visibility_of(None if value is None else {"history_visibility": value})


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].last + 1 >= span.first:
            merged[-1] = Span(merged[-1].first, max(span.last, merged[-1].last))
        else:
            merged.append(span)
    return merged


class Visibility:
    """Answer what users see of rooms, in memory for those asked about lately, kept true by the log."""

    def __init__(self, *, store: RoomStore, tail: Tail, max_sights: int = 50_000) -> None:
        self._store = store
        self._max_sights = max_sights
        self._sights: OrderedDict[tuple[str, str], Sight] = OrderedDict()
        self._users_of_room: dict[str, set[str]] = {}
        self._changes = 0
        tail.listen(self._apply, changes=True)

    def known(self, room_id: str, user_id: str) -> Sight | None:
        """Give what a user sees of a room if it is in memory."""
        return self._sights.get((room_id, user_id))

    async def sight(self, room_nid: int, room_id: str, user_id: str) -> Sight:
        """Give what a user sees of a room."""
        sight = self._sights.get((room_id, user_id))
        if sight is not None:
            return sight
        return (await self.sights({room_id: room_nid}, user_id))[room_id]

    async def sights(self, rooms: Mapping[str, int], user_id: str) -> dict[str, Sight]:
        """Give what a user sees of each of some rooms (room_id to room_nid), with one query at most."""
        found = {room_id: s for room_id in rooms if (s := self._sights.get((room_id, user_id))) is not None}
        missing = {room_nid: room_id for room_id, room_nid in rooms.items() if room_id not in found}
        if not missing:
            return found
        changes_before = self._changes
        by_room = await self._store.sight_changes(list(missing), user_id)
        for room_nid, room_id in missing.items():
            found[room_id] = sight_of(by_room.get(room_nid, ()))
            # What the log brought meanwhile may be missing in the answer: then it is not kept.
            if self._changes == changes_before:
                self._keep(room_id, user_id, found[room_id])
        return found

    def _keep(self, room_id: str, user_id: str, sight: Sight) -> None:
        self._sights[room_id, user_id] = sight
        self._users_of_room.setdefault(room_id, set()).add(user_id)
        if len(self._sights) > self._max_sights:
            self._forget(*next(iter(self._sights)))

    def _forget(self, room_id: str, user_id: str) -> None:
        if self._sights.pop((room_id, user_id), None) is None:
            return
        users = self._users_of_room[room_id]
        users.discard(user_id)
        if not users:
            del self._users_of_room[room_id]

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not isinstance(row, EventRow):
                if row.kind == PURGED_ROOM and row.room_id is not None:
                    self._forget_room(row.room_id)
                continue
            for type_, state_key in row.state_changes:
                if type_ == MEMBER:
                    self._changes += 1
                    self._forget(row.room_id, state_key)
                elif type_ == HISTORY_VISIBILITY:
                    self._forget_room(row.room_id)

    def _forget_room(self, room_id: str) -> None:
        self._changes += 1
        for user_id in list(self._users_of_room.get(room_id, ())):
            self._forget(room_id, user_id)
