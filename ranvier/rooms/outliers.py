"""Events that are stored without a place in the history: what others cite, and the state of a room joined.

Source: server-server API, "Checks performed on receipt of a PDU", steps 1 to 4; "Joining Rooms".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from ranvier.rooms.received_pdu import Dropped, KeyRing, check_pdus
from ranvier.rooms.room import auth_chain_of
from ranvier.spec.errors import AuthError, MatrixError
from ranvier.spec.event import Event
from ranvier.spec.event_auth import CREATE_KEY, check_auth, check_state_independent
from ranvier.spec.room_versions import RoomVersion
from ranvier.storage.event_graph import EventGraphStore
from ranvier.storage.events import EventStore
from ranvier.storage.nids import Nids
from ranvier.wire.log_rows import EventRow

_SLICE: Final = 200
_PIECE: Final = 10  # so many are authorised before the loop serves others
_MAX_ATTEMPTS: Final = 10


class RoomName(NamedTuple):
    """What an event's row says of its room."""

    room_nid: int
    room_id: str
    version: RoomVersion


class StoredOutliers(NamedTuple):
    """What became of outliers.

    ``ids`` are the event ids of the PDUs, in the order given (None for what has none); ``rows`` those that
    are stored and what they cite; ``rejected`` the ids of those of them that were rejected; ``dropped`` says
    why others are not stored.
    """

    ids: list[str | None]
    rows: dict[str, EventRow]
    rejected: set[str]
    dropped: list[Dropped]


class Outliers:
    """Check events by what they cite alone and store them, in slices."""

    def __init__(self, *, events: EventStore, graph: EventGraphStore, nids: Nids, pool: Executor) -> None:
        self._events = events
        self._graph = graph
        self._nids = nids
        self._pool = pool

    async def store(self, room: RoomName, pdus: Sequence[object], keys: KeyRing) -> StoredOutliers:
        """Check and store events; whatever they cite is stored or among them.

        Those that fail the checks of form and signature, and those that cite what is not there, are left
        out. The room's create event must be stored or among them.
        """
        stored = StoredOutliers([], {}, set(), [])
        events: dict[str, Event] = {}
        for start in range(0, len(pdus), _SLICE):
            for result in await check_pdus(
                pdus[start : start + _SLICE],
                room_id=room.room_id,
                version=room.version,
                keys=keys,
                pool=self._pool,
                with_create=True,
            ):
                stored.ids.append(result.event_id)
                if isinstance(result, Event):
                    events[result.event_id] = result
                else:
                    stored.dropped.append(result)
        ordered = by_citation(events)
        create = await self._create_row(room, ordered)
        for start in range(0, len(ordered), _SLICE):
            await self._store_slice(room, ordered[start : start + _SLICE], create, stored)
        return stored

    async def _create_row(self, room: RoomName, ordered: Sequence[Event]) -> Event | None:
        for event in ordered:
            if event.is_state and event.key == CREATE_KEY:
                return event
        nids = (await self._graph.nids_at(room.room_nid, [CREATE_KEY])).get(CREATE_KEY, [])
        rows = await self._graph.rows_of_room(
            room.room_nid, room.room_id, room.version.identifier, nids=nids[:1]
        )
        return next((row.event for row in rows.values()), None)

    async def _store_slice(
        self, room: RoomName, events: Sequence[Event], create: Event | None, stored: StoredOutliers
    ) -> None:
        for _ in range(_MAX_ATTEMPTS):
            made = await self._judge(room, events, create, stored)
            rejected = frozenset(row.event_nid for row in made if row.event_id in stored.rejected)
            await self._events.store_outliers(made, rejected=rejected)
            nids = await self._events.nids_of([row.event_id for row in made])
            if all(nids.get(row.event_id) == row.event_nid for row in made):
                return
            # Another process stored some of them meanwhile, under integers of its own: those count.
            for row in made:
                stored.rows.pop(row.event_id, None)
        raise MatrixError("M_UNKNOWN", 503, "These events are being stored by another request; try again")

    async def _judge(
        self, room: RoomName, events: Sequence[Event], create: Event | None, stored: StoredOutliers
    ) -> list[EventRow]:
        await self._nids.reserve(2 * _SLICE)
        ids = {event.event_id for event in events}
        wanted = ids.union(*(event.auth_event_ids for event in events)) - stored.rows.keys()
        standings = await self._graph.standings(wanted)
        stored.rejected.update(s.event_id for s in standings.values() if s.rejected)
        known = await self._graph.rows_of_room(
            room.room_nid, room.room_id, room.version.identifier, event_ids=standings
        )
        stored.rows.update(known)
        made: list[EventRow] = []
        for n, event in enumerate(events):
            if n % _PIECE == 0:
                await asyncio.sleep(0)
            if event.event_id in standings:
                continue
            if any(other not in stored.rows for other in event.auth_event_ids):
                stored.dropped.append(Dropped(event.event_id, "It cites events that are not known"))
                continue
            row = self._row(room, event, [stored.rows[other] for other in event.auth_event_ids])
            if not _is_allowed(event, stored, create):
                stored.rejected.add(event.event_id)
            stored.rows[event.event_id] = row
            made.append(row)
        return made

    def _row(self, room: RoomName, event: Event, cited: list[EventRow]) -> EventRow:
        return new_row(room, event, self._nids.take(), cited)


def new_row(room: RoomName, event: Event, event_nid: int, cited: list[EventRow]) -> EventRow:
    """Make the row of a received event that cites ``cited``."""
    return EventRow(
        event_nid=event_nid,
        room_nid=room.room_nid,
        room_id=room.room_id,
        version_id=room.version.identifier,
        event_id=event.event_id,
        type=event.type,
        state_key=event.state_key,
        sender=event.sender,
        depth=event.depth,
        origin_server_ts=event.origin_server_ts,
        pdu=event.raw,
        snapshot_nid=None,
        auth_chain=auth_chain_of(cited).serialize() if event.is_state else None,
        known_event=event,
    )


def _is_allowed(event: Event, stored: StoredOutliers, create: Event | None) -> bool:
    cited = [stored.rows[other].event for other in event.auth_event_ids]
    state = {other.key: other for other in cited if other.is_state}
    if create is not None:
        state.setdefault(CREATE_KEY, create)
    try:
        check_state_independent(event, cited, rejected=stored.rejected, create_event=create)
        check_auth(event, state)
    except AuthError:
        return False
    return True


def by_citation(events: Mapping[str, Event]) -> list[Event]:
    """Sort events so that each comes after those of them that it cites; circles are left out."""
    waiting_for: dict[str, int] = {}
    later: dict[str, list[str]] = {}
    for event_id, event in events.items():
        cited = {other for other in event.auth_event_ids if other in events}
        waiting_for[event_id] = len(cited)
        for other in cited:
            later.setdefault(other, []).append(event_id)
    ready = [event_id for event_id, count in waiting_for.items() if not count]
    for event_id in ready:
        for follower in later.get(event_id, ()):
            waiting_for[follower] -= 1
            if not waiting_for[follower]:
                ready.append(follower)
    return [events[event_id] for event_id in ready]
