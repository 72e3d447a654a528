"""The one door for events that other servers made: six checks, then the log.

Source: server-server API, "Checks performed on receipt of a PDU", "Rejection", "Soft failure".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from enum import Enum
from typing import Final, NamedTuple

from ranvier.log.append import Appender, HeadMoved
from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter, always_overtaken
from ranvier.rooms.fork_state import ForkStates
from ranvier.rooms.outliers import Outliers, RoomName, StoredOutliers
from ranvier.rooms.received_pdu import Dropped, KeyRing, check_pdus
from ranvier.rooms.reception import Arrival, Reception, References
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import AuthError, MatrixError
from ranvier.spec.event import Event
from ranvier.storage.event_graph import EventGraphStore, Standing
from ranvier.storage.events import EventStore
from ranvier.storage.log import AlreadyStored
from ranvier.storage.nids import Nids
from ranvier.wire.log_rows import EventRow

logger = logging.getLogger(__name__)

MAX_PDUS: Final = 500
_SLICE: Final = 50  # so many are taken in before others may write into the room
_MAX_ATTEMPTS: Final = 30
_MAX_BEHIND: Final = 20  # refused events in a row behind which the ends of the history are looked for


class Verdict(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    SOFT_FAILED = "soft_failed"
    REJECTED = "rejected"
    KNOWN = "known"
    MISSING = "missing"
    DROPPED = "dropped"


class Outcome(NamedTuple):
    """Tell what became of one PDU.

    ``event_id`` is None if it has none. ``reason`` says why it was not accepted. ``missing`` names, for the
    verdict MISSING, the events that it follows or cites and that must be received before it.
    """

    event_id: str | None
    verdict: Verdict
    reason: str | None = None
    missing: frozenset[str] = frozenset()


class EventReceiver:
    """Take events of other servers into rooms that this server is in.

    An accepted event is written into the log like any other, wherever in the history of the room it
    belongs. A rejected or soft-failed one is kept with its place in the history, for others may follow it,
    and shown to nobody.
    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        writer: RoomWriter,
        appender: Appender,
        tail: Tail,
        events: EventStore,
        graph: EventGraphStore,
        forks: ForkStates,
        outliers: Outliers,
        nids: Nids,
        pool: Executor,
    ) -> None:
        self._rooms = rooms
        self._writer = writer
        self._appender = appender
        self._tail = tail
        self._events = events
        self._graph = graph
        self._forks = forks
        self._outliers = outliers
        self._nids = nids
        self._pool = pool

    async def receive(
        self, room_id: str, pdus: Sequence[object], *, origin: str, keys: KeyRing
    ) -> list[Outcome]:
        """Take PDUs of one room in, in any order, and give an outcome for each, in the order given.

        ``origin`` is who sent them (for the log file alone: an event is judged by its signatures). Raises
        404 ``M_NOT_FOUND`` for a room that is not known, 413 ``M_TOO_LARGE`` for over ``MAX_PDUS``,
        503 ``M_UNKNOWN``: some may have been taken in then, and come back as known.
        """
        if len(pdus) > MAX_PDUS:
            raise MatrixError("M_TOO_LARGE", 413, f"At most {MAX_PDUS} events are taken at once")
        room = await self._rooms.get(room_id)
        checked = await check_pdus(pdus, room_id=room_id, version=room.version, keys=keys, pool=self._pool)
        by_id = {event.event_id: event for event in checked if isinstance(event, Event)}
        outcomes: dict[str, Outcome] = {}
        ordered = topological(by_id)
        for start in range(0, len(ordered), _SLICE):
            arrivals = [Arrival(event) for event in ordered[start : start + _SLICE]]
            await self._writer.take_turn(room_id, _Intake(self, room_id, arrivals, outcomes).run)
        answers = [_answer(result, outcomes) for result in checked]
        _log_refused(origin, room_id, answers)
        return answers

    async def receive_outliers(
        self, room_id: str, pdus: Sequence[object], *, keys: KeyRing
    ) -> StoredOutliers:
        """Store events of a room that others cite (the auth chain of what came), without a place in it.

        They are checked by what they cite, which is stored or among them. Raises 404 ``M_NOT_FOUND``.
        """
        room = await self._rooms.get(room_id)
        return await self._outliers.store(RoomName(room.room_nid, room_id, room.version), pdus, keys)

    # -- what an intake uses -------------------------------------------------------------------------

    async def begin(self, room_id: str, arrivals: Sequence[Arrival]) -> Reception:
        """Load the room and what the arrivals refer to."""
        # Before the room, so that none of it is newer than what the room is compared with.
        references = await self._load_references(arrivals)
        await self._nids.reserve(4000)
        room = await self._rooms.get(room_id)
        return Reception(room, references=references, forks=self._forks, graph=self._graph, nids=self._nids)

    async def _load_references(self, arrivals: Sequence[Arrival]) -> References:
        wanted: set[str] = set()
        auth_ids: set[str] = set()
        redacted: set[str] = set()
        for arrival in arrivals:
            event = arrival.event
            auth_ids.update(event.auth_event_ids)
            wanted.add(event.event_id)
            wanted.update(event.prev_event_ids)
            if event.type == "m.room.redaction" and event.redacts is not None:
                redacted.add(event.redacts)
        standings = await self._graph.standings(wanted | auth_ids)
        rows = await self._events.by_ids(auth_ids | redacted)
        await self._load_refused(standings, rows)
        ids = [arrival.event.event_id for arrival in arrivals]
        return References(
            standings, rows, frozenset(await self._graph.followed(ids)), await self._early_redactions(ids)
        )

    async def _load_refused(self, standings: dict[str, Standing], rows: dict[str, EventRow]) -> None:
        """Load the refused events through which others follow the room's history, and where those stand."""
        looking = [s.event_id for s in standings.values() if s.is_refused and s.event_id not in rows]
        for _ in range(_MAX_BEHIND):
            if not looking:
                return
            found = await self._events.by_ids(looking)
            rows.update(found)
            behind = {other for row in found.values() for other in row.event.prev_event_ids}
            standings.update(new := await self._graph.standings(behind - standings.keys()))
            looking = [s.event_id for s in new.values() if s.is_refused]

    async def _early_redactions(self, event_ids: Sequence[str]) -> dict[str, list[EventRow]]:
        by_target = await self._graph.redactions_of(event_ids)
        rows = await self._events.by_nids({nid for nids in by_target.values() for nid in nids})
        return {target: [rows[nid] for nid in nids if nid in rows] for target, nids in by_target.items()}

    async def commit(self, reception: Reception) -> None:
        """Write what was accepted into the log. Raises HeadMoved, AlreadyStored."""
        if not reception.events:
            return
        write = await reception.write()
        pos = await self._appender.append_room(write)
        reception.set_stored()
        await self._tail.wait_for(pos)

    async def overtaken(self, room_id: str, times: int) -> None:
        """Let the room be read anew: somebody else wrote to it."""
        await self._writer.overtaken(room_id, times)
        self._rooms.drop(room_id)


class _Intake:
    """Take one slice of a batch in: commit what is accepted up to the next event that is refused, and so on.

    So whatever is stored rests only on what is stored already.
    """

    def __init__(
        self,
        receiver: EventReceiver,
        room_id: str,
        arrivals: Sequence[Arrival],
        outcomes: dict[str, Outcome],
    ) -> None:
        self._receiver = receiver
        self._room_id = room_id
        self._waiting = list(arrivals)
        self._outcomes = outcomes

    async def run(self) -> None:
        attempts = 0
        while self._waiting:
            try:
                await self._pass()
            except (HeadMoved, AlreadyStored):
                attempts += 1
                if attempts == _MAX_ATTEMPTS:
                    raise always_overtaken() from None
                await self._receiver.overtaken(self._room_id, attempts)

    async def _pass(self) -> None:
        reception = await self._receiver.begin(self._room_id, self._waiting)
        outcomes: list[Outcome] = []
        refused: Arrival | None = None
        for arrival in self._waiting:
            outcome = await self._judge(reception, arrival)
            outcomes.append(outcome)
            if outcome.verdict in (Verdict.REJECTED, Verdict.SOFT_FAILED):
                refused = arrival
                break
        await self._receiver.commit(reception)
        if refused is not None:
            soft_failed = outcomes[-1].verdict is Verdict.SOFT_FAILED
            try:
                await reception.store_refused(refused, soft_failed=soft_failed)
            except AlreadyStored:
                self._done(outcomes[:-1])
                raise
        self._done(outcomes)

    def _done(self, outcomes: Sequence[Outcome]) -> None:
        del self._waiting[: len(outcomes)]
        for outcome in outcomes:
            assert outcome.event_id is not None
            self._outcomes[outcome.event_id] = outcome

    async def _judge(self, reception: Reception, arrival: Arrival) -> Outcome:
        event_id = arrival.event.event_id
        if reception.is_known(arrival):
            return Outcome(event_id, Verdict.KNOWN)
        if missing := reception.missing(arrival):
            return Outcome(event_id, Verdict.MISSING, "It follows or cites events not known here", missing)
        try:
            allowed_now = await reception.check(arrival)
        except AuthError as error:
            return Outcome(event_id, Verdict.REJECTED, error.message)
        if allowed_now is not None:
            return Outcome(event_id, Verdict.SOFT_FAILED, allowed_now.message)
        await reception.accept(arrival)
        return Outcome(event_id, Verdict.ACCEPTED)


def topological(events: Mapping[str, Event]) -> list[Event]:
    """Sort events so that each comes after those of them that it follows or cites.

    Those that go round in a circle (only ids that were freely chosen can) come last.
    """
    waiting_for = {
        event_id: {other for other in (*event.prev_event_ids, *event.auth_event_ids) if other in events}
        for event_id, event in events.items()
    }
    later: dict[str, list[str]] = {}
    for event_id, others in waiting_for.items():
        for other in others:
            later.setdefault(other, []).append(event_id)
    ready = [event_id for event_id, others in waiting_for.items() if not others]
    ordered: list[Event] = []
    for event_id in ready:
        ordered.append(events[event_id])
        for follower in later.get(event_id, ()):
            waiting_for[follower].discard(event_id)
            if not waiting_for[follower]:
                ready.append(follower)
    done = set(ready)
    ordered.extend(event for event_id, event in events.items() if event_id not in done)
    return ordered


def _answer(result: Event | Dropped, outcomes: Mapping[str, Outcome]) -> Outcome:
    if isinstance(result, Dropped):
        return Outcome(result.event_id, Verdict.DROPPED, result.reason)
    return outcomes[result.event_id]


def _log_refused(origin: str, room_id: str, outcomes: Iterable[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.verdict in (Verdict.DROPPED, Verdict.REJECTED, Verdict.SOFT_FAILED):
            logger.info(
                "Event %s of %s from %s: %s (%s)",
                outcome.event_id,
                room_id,
                origin,
                outcome.verdict.value,
                outcome.reason,
            )
