"""Wake the requests that wait, and only those that a row of the log concerns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Protocol

from ranvier.log.bus import Bus, Ephemeral
from ranvier.log.tail import Tail
from ranvier.log.turns import Turns, Work, resolve
from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.room import MEMBER
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError
from ranvier.users.receipts import READ_PRIVATE
from ranvier.users.typing_rooms import TYPING, WHOLE_LIST
from ranvier.wire.log_rows import EventRow, LogRow, Row

logger = logging.getLogger(__name__)

# Of those whose answer takes a task: 25 keep all others waiting for 40 ms (``python -m bench.stalls``).
_WOKEN_AT_ONCE: Final = 8

ROOM_KINDS = frozenset({"receipt"})
"""Kinds of rows that everybody in ``room_id`` is told of (private receipts are for their user alone)."""

ROOM_EPHEMERALS = frozenset({TYPING, WHOLE_LIST})
"""Kinds of what is told and not kept that concern everybody in a room."""

SHARED_KINDS = frozenset({"device_list"})
"""Kinds of rows that everybody who shares a room with ``user_id`` is told of."""


class Wakeable(Protocol):
    """Something that waits for news of one user, who had these memberships when it began."""

    @property
    def user_id(self) -> str:
        """Give whose news they are."""

    @property
    def rooms(self) -> Mapping[str, Membership]:
        """Give the user's memberships."""

    def wake(self) -> None:
        """End the wait, or let the notifier end it in its turn (``Notifier.give``)."""


class Waiter:
    """Wait for something that concerns one user. What comes from its making on counts.

    Used as a context manager, so that the notifier forgets it.
    """

    __slots__ = ("_future", "_notifier", "_woken", "rooms", "user_id")

    def __init__(self, notifier: Notifier, user_id: str, rooms: dict[str, Membership]) -> None:
        self.user_id = user_id
        self.rooms = rooms
        self._notifier = notifier
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    async def wait(self, timeout_s: float) -> bool:
        """Wait until woken; False after ``timeout_s`` seconds. Afterwards it can be waited for again."""
        if not self._woken and timeout_s > 0:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(timeout_s, resolve, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        """End the wait."""
        if not self._woken and self._future is not None:
            self._notifier.give(partial(resolve, self._future))
        self._woken = True

    def __enter__(self) -> Waiter:
        self._notifier.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notifier.remove(self)


class Notifier:
    """Know who waits, and wake them.

    An event costs the intersection of who is joined and who waits, taken in C, and then a wake for each
    of these; no room holds a list of waiters, so parking a request costs nothing per room.
    """

    def __init__(self, *, tail: Tail, bus: Bus, rooms: Rooms, memberships: Memberships) -> None:
        self._tail = tail
        self._bus = bus
        self._rooms = rooms
        self._memberships = memberships
        self._waiting: dict[str, set[Wakeable]] = {}
        self._shared: asyncio.Queue[str] = asyncio.Queue()
        self._turns = Turns(_WOKEN_AT_ONCE)
        self.closed = False
        """Whether waiting is over: the process drains."""
        self.shared_pos = tail.pos
        """Position of the newest row that may concern users who are named neither by user nor by room."""
        tail.listen(self._on_rows)
        bus.listen(ephemerals=self._on_ephemeral)
        bus.relax_unless(lambda: bool(self._waiting))

    async def waiter(self, user_id: str) -> Waiter:
        """Make a waiter for a user; enter it before looking at what there is."""
        return Waiter(self, user_id, await self._memberships.of(user_id))

    def add(self, waiter: Wakeable) -> None:
        """Wake this one from now on."""
        self._waiting.setdefault(waiter.user_id, set()).add(waiter)
        self._bus.attend()
        if self.closed:
            waiter.wake()

    def remove(self, waiter: Wakeable) -> None:
        """Forget this one."""
        waiters = self._waiting[waiter.user_id]
        waiters.discard(waiter)
        if not waiters:
            del self._waiting[waiter.user_id]

    @property
    def waiting(self) -> int:
        """Give the number of those who wait."""
        return sum(map(len, self._waiting.values()))

    def give(self, work: Work) -> None:
        """Let a waiter go on, in its turn.

        All that are let go on at once make their answers before the event loop does anything else, so that a
        message in a large room would keep everybody else waiting.
        """
        self._turns.give(work)

    def close(self) -> None:
        """Wake everybody, and let nobody wait any more."""
        self.closed = True
        self.wake_users(list(self._waiting))

    def wake_users(self, user_ids: Iterable[str]) -> None:
        """Wake everything that waits for these users."""
        for user_id in user_ids:
            for waiter in self._waiting.get(user_id, ()):
                waiter.wake()

    def wake_room(self, room_id: str) -> None:
        """Wake everything that waits for somebody joined to a room."""
        if not self._waiting:
            return
        room = self._rooms.held(room_id)
        if room is not None:
            self.wake_users(room.joined & self._waiting.keys())
            return
        for waiters in self._waiting.values():
            for waiter in waiters:
                membership = waiter.rooms.get(room_id)
                if membership is not None and membership.membership == "join":
                    waiter.wake()

    async def run(self) -> None:
        """Wake those who share a room with somebody, which may have to be read; for ever."""
        while True:
            user_id = await self._shared.get()
            try:
                rooms = await self._memberships.joined(user_id)
            except MatrixError as error:
                # Who waits hears of it with whatever wakes them next.
                logger.warning("Can not find out who shares a room with %s: %s", user_id, error)
                continue
            except Exception:
                logger.exception("Can not find out who shares a room with %s", user_id)
                continue
            for room_id in rooms:
                self.wake_room(room_id)

    def _on_rows(self, rows: Sequence[Row]) -> None:
        woken_rooms: set[str] = set()
        for row in rows:
            if isinstance(row, EventRow):
                if not self._waiting:
                    continue
                if row.type == MEMBER and row.state_key is not None:
                    self.wake_users((row.state_key,))
                if row.room_id not in woken_rooms:
                    woken_rooms.add(row.room_id)
                    self.wake_room(row.room_id)
            else:
                self._on_log_row(row)

    def _on_log_row(self, row: LogRow) -> None:
        if row.kind in ROOM_KINDS and row.room_id is not None and row.key != READ_PRIVATE:
            self.wake_room(row.room_id)
        elif row.user_id is not None:
            self.wake_users((row.user_id,))
            if row.kind in SHARED_KINDS:
                self.shared_pos = row.pos
                if self._waiting:
                    self._shared.put_nowait(row.user_id)

    def _on_ephemeral(self, message: Ephemeral) -> None:
        if not self._waiting:
            return
        if message.kind in ROOM_EPHEMERALS:
            self.wake_room(message.key)
        elif message.kind == "presence":
            self.wake_users((message.key,))
            self._shared.put_nowait(message.key)
