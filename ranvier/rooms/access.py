"""Who may look into a room, and as of when: now, as of leaving, or as anybody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ranvier.log.tail import Tail
from ranvier.rooms.actor import Actor
from ranvier.rooms.room import Room
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.visibility import Sight, Visibility
from ranvier.spec.errors import MatrixError, forbidden, not_found
from ranvier.spec.event import StateKey
from ranvier.storage.events import EventStore
from ranvier.wire.log_rows import EventRow

State = Mapping[StateKey, EventRow]

IsForgotten = Callable[[str, str], Awaitable[bool]]
"""Tells whether a user has forgotten a room: user_id, room_id."""


class StatesAt(Protocol):
    """Give the state of rooms at positions of the log."""

    async def of(self, positions: Mapping[str, int]) -> Mapping[str, State]:
        """Give the state after the event at each position, per room id."""


@dataclass(frozen=True, slots=True)
class View:
    """A room as one user may look at it.

    ``membership`` is what they are now, ``as_of`` the log position at which they left (None: they see the
    room as it is now), ``sight`` what they see of its history.
    """

    room: Room
    user_id: str
    membership: str | None
    as_of: int | None
    sight: Sight


class RoomAccess:
    """Let users look into rooms, or refuse it."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        visibility: Visibility,
        events: EventStore,
        tail: Tail,
        states_at: StatesAt,
        is_forgotten: IsForgotten,
    ) -> None:
        self._rooms = rooms
        self._visibility = visibility
        self._events = events
        self._tail = tail
        self._states_at = states_at
        self._is_forgotten = is_forgotten

    async def access_room(self, actor: Actor, room_id: str) -> View:
        """Let a user read who is or was joined, or anybody where the room is world-readable.

        A room that is not known is refused like one that the user is not in. Raises 403 ``M_FORBIDDEN``.
        """
        room = await self._rooms.find(room_id)
        if room is None:
            raise forbidden("You are not in that room")
        user_id = actor.user_id
        sight = await self._visibility.sight(room.room_nid, room_id, user_id)
        membership = room.membership_of(user_id)
        if membership == "join":
            return View(room, user_id, membership, None, sight)
        left_at = sight.left_at
        if left_at is not None and not await self._is_forgotten(user_id, room_id):
            return View(room, user_id, membership, left_at, sight)
        if room.history_visibility == "world_readable":
            return View(room, user_id, membership, None, sight)
        raise forbidden("You are not in that room, and were not before")

    async def access_joined(self, actor: Actor, room_id: str) -> View:
        """Let a user read who is joined now. Raises 403 ``M_FORBIDDEN``."""
        view = await self.access_room(actor, room_id)
        if view.membership != "join":
            raise forbidden("You are not in that room")
        return view

    async def access_event(self, actor: Actor, room_id: str, event_id: str) -> tuple[View, EventRow]:
        """Find an event that a user may see. Raises 404 ``M_NOT_FOUND``, also where they may not."""
        try:
            view = await self.access_room(actor, room_id)
        except MatrixError as error:
            if error.status != 403:
                raise
            raise _no_event() from None
        row = self._tail.event(event_id)
        if row is None:
            row = (await self._events.by_ids([event_id])).get(event_id)
        if row is None or row.room_id != room_id or not self._sees(view, row):
            raise _no_event()
        return view, row

    def _sees(self, view: View, row: EventRow) -> bool:
        if row.pos:
            return view.sight.sees(row.pos)
        # Not in the timeline: state from before this server was in the room is seen by those who are in it.
        if row.state_key is None or view.membership != "join":
            return False
        current = view.room.state.get(row.key)
        return current is not None and current.event_id == row.event_id

    async def state(self, view: View, at: int | None = None) -> State:
        """Give the state that a user sees: now, as of leaving, or at an earlier position ``at``.

        The answer may be the room's live state: do not change it, and use it before awaiting again.
        """
        positions = [pos for pos in (view.as_of, at) if pos is not None]
        if not positions or min(positions) >= view.room.head:
            return view.room.state
        room_id = view.room.room_id
        return (await self._states_at.of({room_id: min(positions)}))[room_id]


def _no_event() -> MatrixError:
    return not_found("There is no such event in that room, or you may not see it")
