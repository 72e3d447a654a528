"""The one door into a room: a queue for each, whose waiting actions become one commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from ranvier.cluster.claims import RoomClaims
from ranvier.log.append import Appender, HeadMoved, TransactionRepeated
from ranvier.log.clock import Clock, asked_s
from ranvier.log.standstill import Standstill, too_late
from ranvier.log.tail import Tail
from ranvier.rooms.draft import Base, Draft, Identity, Txn
from ranvier.rooms.many_ends import ManyEnds
from ranvier.rooms.room import Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError, not_found
from ranvier.spec.room_versions import RoomVersion
from ranvier.storage.database import DatabaseUnavailable
from ranvier.storage.log import AlreadyStored
from ranvier.storage.nids import Nids
from ranvier.storage.transactions import TransactionStore

logger = logging.getLogger(__name__)

T = TypeVar("T")
Action = Callable[[Draft], T]
"""Adds events to a draft, all or (by raising) none, and gives what its caller wants to know."""

_MAX_WAITING = 1000
_MAX_BATCH = 50
_MAX_ATTEMPTS = 10
_ATTEMPTS_BEFORE_CLAIM = 2
_PATIENCE_S = 0.05


class AlreadySent(Exception):
    """Say that the transaction id was used before, for ``event_id``."""

    def __init__(self, event_id: str) -> None:
        super().__init__(event_id)
        self.event_id = event_id


class _Waiting(Generic[T]):
    __slots__ = ("action", "asked_s", "attempts", "done", "txn")

    def __init__(self, action: Action[T], txn: Txn | None) -> None:
        self.action = action
        self.txn = txn
        self.asked_s = asked_s()
        self.attempts = 0
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()


class _Turn(Generic[T]):
    """Work that writes into a room by itself, with nothing else of this process doing so meanwhile."""

    __slots__ = ("done", "work")

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self.work = work
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def take(self) -> None:
        try:
            result = await self.work()
        except Exception as error:
            _fail(self, error)  # to whom it concerns
        else:
            _succeed(self, result)


class RoomWriter:
    """Write events of ours into rooms.

    Actions on one room are done in the order in which they came; while one commit is under way the next
    ones wait and then share a commit. Nothing here must be alone in writing to a room: the commit
    compares the room's head, and on a mismatch the actions are done again on what others wrote. Who is
    overtaken twice claims the room, where there are other workers (``claims``).
    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        appender: Appender,
        tail: Tail,
        transactions: TransactionStore,
        nids: Nids,
        identity: Identity,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        many_ends: ManyEnds,
        standstill: Standstill,
    ) -> None:
        self._rooms = rooms
        self._many_ends = many_ends
        self._appender = appender
        self._tail = tail
        self._transactions = transactions
        self._nids = nids
        self._identity = identity
        self._clock = clock
        self._tasks = tasks
        self._queues: dict[str, list[_Waiting[Any] | _Turn[Any]]] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._created_ms = 0
        self.standstill = standstill
        self.claims: RoomClaims | None = None

    async def write(self, room_id: str, action: Action[T], txn: Txn | None = None) -> T:
        """Do an action on a room, commit it and give its result, once readers here see it.

        Raises what the action raises (nothing is written then), 404 ``M_NOT_FOUND`` for an unknown room,
        AlreadySent when ``txn`` was used before, 503 ``M_UNKNOWN``.
        """
        waiting = _Waiting(action, txn)
        self._enqueue(room_id, waiting)
        # A caller that goes away ends this wait, and nothing else.
        return await waiting.done

    async def take_turn(self, room_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that writes into a room by itself, when what waited before it is done.

        Nothing else of this process writes into the room meanwhile, so that work which must load much is
        not overtaken again and again. Raises what the work raises.
        """
        turn = _Turn(work)
        self._enqueue(room_id, turn)
        return await turn.done

    async def overtaken(self, room_id: str, times: int) -> None:
        """Have others let this process go first, from the second time on; or let somebody else go first."""
        if self.claims is not None:
            if times >= _ATTEMPTS_BEFORE_CLAIM:
                self.claims.claim(room_id)
            await self._let_others_first(self.claims, room_id)

    async def settle(self, timeout_s: float) -> None:
        """Wait until all that was begun is written, but no longer than ``timeout_s``."""
        if self._draining:
            await asyncio.wait(self._draining, timeout=timeout_s)

    async def _let_others_first(self, claims: RoomClaims, room_id: str) -> None:
        if claims.must_wait(room_id) and (pos := await claims.wait(room_id)):
            await self._tail.wait_for(pos, _PATIENCE_S)

    def _enqueue(self, room_id: str, waiting: _Waiting[Any] | _Turn[Any]) -> None:
        queue = self._queues.get(room_id)
        if queue is None:
            self._queues[room_id] = [waiting]
            task = self._tasks.create_task(self._drain(room_id))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
        elif len(queue) >= _MAX_WAITING:
            raise MatrixError(
                "M_LIMIT_EXCEEDED", 429, "This room is too busy; try again", retry_after_ms=1000
            )
        else:
            queue.append(waiting)

    async def create(self, version: RoomVersion, room_id: str, action: Action[T]) -> T:
        """Make a room: the action's first event is its create event.

        ``room_id`` is empty for a room version whose id is the create event's hash: two rooms that one user
        makes alike in the same millisecond would be one, so each gets a millisecond of its own.
        """
        for _ in range(_MAX_ATTEMPTS):
            await self._nids.reserve()
            room = Room(room_nid=self._nids.take(), room_id=room_id, version=version)
            self._created_ms = max(self._created_ms + 1, self._clock.now_ms())
            draft = Draft(room, identity=self._identity, nids=self._nids, now_ms=self._created_ms)
            result = action(draft)
            try:
                pos = await self._appender.append_room(draft.write())
            except AlreadyStored:
                continue  # another process made a room alike in this millisecond
            await self._tail.wait_for(pos)
            return result
        raise DatabaseUnavailable

    def _draft(self, room: Room, base: Base | None = None) -> Draft:
        return Draft(room, identity=self._identity, nids=self._nids, now_ms=self._clock.now_ms(), base=base)

    async def _drain(self, room_id: str) -> None:
        queue, claims = self._queues[room_id], self.claims
        while queue:
            if claims is not None:
                await self._let_others_first(claims, room_id)
            batch = _take_batch(queue)
            again: list[_Waiting[Any]] = []
            try:
                if not batch:
                    turn = queue.pop(0)
                    assert isinstance(turn, _Turn)
                    await turn.take()
                else:
                    again = await self._commit(room_id, batch)
            except Exception as error:
                # Whatever went wrong concerns this batch, and each of its callers is told.
                if not isinstance(error, MatrixError):
                    logger.exception("Writing to room %s failed", room_id)
                self._rooms.drop(room_id)
                for waiting in batch:
                    _fail(waiting, error)
            queue[:0] = again
            if claims is not None and not again:
                claims.give_back(room_id, self._tail.pos)
        del self._queues[room_id]

    async def _commit(self, room_id: str, batch: list[_Waiting[Any]]) -> list[_Waiting[Any]]:
        """Commit what can be committed of a batch; give those that are to be tried again."""
        await self._nids.reserve(4000)
        room = await self._rooms.find(room_id)
        if room is None:
            raise not_found("This server does not know that room")
        head, head_ts = room.head, room.latest_ts
        base = await self._many_ends.base(room)
        draft = self._draft(room, base)
        in_time = self._in_time(room, batch)
        results = [(w, outcome[0]) for w in in_time if (outcome := _do(draft, w)) is not None]
        if not draft.events:
            for waiting, result in results:
                _succeed(waiting, result)
            return []
        try:
            if base is not None:
                await self._many_ends.settle(draft, base)
                if room.head != head:
                    raise HeadMoved(self._tail.pos)  # while the states were resolved
            pos = await self._appender.append_room(draft.write())
        except HeadMoved as moved:
            await self._follow(room, head, moved.pos)
            again = _again([waiting for waiting, _ in results])
            if again:
                await self.overtaken(room_id, max(waiting.attempts for waiting in again))
            return again
        except TransactionRepeated as repeated:
            await self._tail.wait_for(repeated.pos, _PATIENCE_S)
            return await self._without_repeated([waiting for waiting, _ in results])
        room.note_written(pos, head, head_ts)
        await self._tail.wait_for(pos)
        for waiting, result in results:
            _succeed(waiting, result)
        return []

    async def _follow(self, room: Room, head: int, pos: int) -> None:
        """Wait for what another process wrote to a room; if the log does not bring it, load the room anew."""
        if not await self._tail.wait_for(pos, _PATIENCE_S) or room.head == head:
            self._rooms.drop(room.room_id)

    def _in_time(self, room: Room, batch: list[_Waiting[Any]]) -> list[_Waiting[Any]]:
        """Give those of a batch that may be done now, on top of what others wrote.

        While this process stood still, another one may have done the same in its place, and somebody else
        have changed it since. (What has a transaction id that is surely kept is done once anyway.)
        """
        self.standstill.look()
        in_time: list[_Waiting[Any]] = []
        for waiting in batch:
            is_once = waiting.txn is not None and waiting.txn.is_surely_kept
            pos = None if is_once else self.standstill.pos_before(waiting.asked_s)
            if pos is None or room.written_elsewhere <= pos:
                in_time.append(waiting)
            else:
                _fail(waiting, too_late())
        return in_time

    async def _without_repeated(self, batch: list[_Waiting[Any]]) -> list[_Waiting[Any]]:
        known = await self._transactions.event_ids([w.txn for w in batch if w.txn is not None])
        again = []
        for waiting in batch:
            if waiting.txn is not None and (event_id := known.get(tuple(waiting.txn))) is not None:
                _fail(waiting, AlreadySent(event_id))
            else:
                again.append(waiting)
        return _again(again)


def _take_batch(queue: list[_Waiting[Any] | _Turn[Any]]) -> list[_Waiting[Any]]:
    """Take the actions that wait before the next turn; none if a turn is next."""
    batch: list[_Waiting[Any]] = []
    for waiting in queue[:_MAX_BATCH]:
        if isinstance(waiting, _Turn):
            break
        batch.append(waiting)
    del queue[: len(batch)]
    return batch


def _do(draft: Draft, waiting: _Waiting[Any]) -> tuple[Any] | None:
    """Do one action and give its result in a tuple; None if it was refused (and nothing of it is left)."""
    mark = draft.mark()
    try:
        result = waiting.action(draft)
    except Exception as error:
        draft.take_back(mark)
        if not isinstance(error, MatrixError):
            logger.exception("An action on room %s failed", draft.room_id)
        _fail(waiting, error)
        return None
    if waiting.txn is not None:
        draft.note_txn(waiting.txn, mark)
    return (result,)


def _again(batch: list[_Waiting[Any]]) -> list[_Waiting[Any]]:
    for waiting in batch:
        waiting.attempts += 1
        if waiting.attempts >= _MAX_ATTEMPTS:
            _fail(waiting, always_overtaken())
    return [waiting for waiting in batch if waiting.attempts < _MAX_ATTEMPTS]


def always_overtaken() -> MatrixError:
    """Say that others were faster each time (503)."""
    return MatrixError("M_UNKNOWN", 503, "Others wrote to this room each time; try again")


def _succeed(waiting: _Waiting[T] | _Turn[T], result: T) -> None:
    if not waiting.done.done():
        waiting.done.set_result(result)


def _fail(waiting: _Waiting[Any] | _Turn[Any], error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
        waiting.done.exception()  # its caller may be gone
