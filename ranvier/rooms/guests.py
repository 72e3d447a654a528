"""Guests leave a room that wants them no longer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import orjson

from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import MatrixError
from ranvier.wire.log_rows import EventRow, Row

logger = logging.getLogger(__name__)

GUEST_ACCESS: Final = ("m.room.guest_access", "")
_AT_ONCE: Final = 100
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0


class GuestEviction:
    """Follow the log for rooms that close to guests, and let our guests leave them.

    Every process may do so: who has left already does not leave again. Who could not leave, and who was left
    in a room by an earlier run of the server, is looked for in the database.
    Source: client-server API, "Guest Access", server behaviour: "If the m.room.guest_access event is
    changed to stop this from being the case, the server MUST set those users' m.room.member state to leave."
    """

    def __init__(
        self,
        *,
        writer: RoomWriter,
        tail: Tail,
        guests_in: Callable[[str], Awaitable[Sequence[str]]],
        rooms_with_guests: Callable[[], Awaitable[Sequence[tuple[str, bytes]]]],
    ) -> None:
        """Follow ``tail``.

        ``guests_in`` gives the guests of ours who are in a room, ``rooms_with_guests`` the rooms that have
        any with the PDU that says who may be there.
        """
        self._writer = writer
        self._guests_in = guests_in
        self._rooms_with_guests = rooms_with_guests
        self._closed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._left.set()
        tail.listen(self._apply, changes=True)

    async def run(self) -> None:
        """Let guests leave, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_for_more())
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._closed:
                    room_id = next(iter(self._closed))
                    del self._closed[room_id]
                    await self._try(room_id)

    async def _look_for_more(self) -> None:
        """Find guests who were left in rooms: at the beginning, and when some could not leave, ever later."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._left.wait()
            self._left.clear()
            try:
                for room_id, pdu in await self._rooms_with_guests():
                    if orjson.loads(pdu)["content"].get("guest_access") != "can_join":
                        self._add(room_id)
            except MatrixError as error:
                logger.warning("Rooms with guests can not be read now: %s", error)
                self._left.set()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S) if self._left.is_set() else _FIRST_PAUSE_S

    async def _try(self, room_id: str) -> None:
        try:
            await self._evict(room_id)
        except MatrixError as error:
            self._left.set()
            logger.warning("Guests could not leave %s: %s", room_id, error)
        except Exception:
            # One room that cannot be worked with must not end the server.
            self._left.set()
            logger.exception("Letting guests leave %s failed", room_id)

    def _add(self, room_id: str) -> None:
        self._closed[room_id] = None
        self._wake.set()

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, EventRow) and GUEST_ACCESS in row.state_changes and not _surely_opens(row):
                self._add(row.room_id)

    async def _evict(self, room_id: str) -> None:
        # Nearly always there are none, and the room need not be in the memory of each process for that.
        guests = sorted(await self._guests_in(room_id))
        for start in range(0, len(guests), _AT_ONCE):
            await self._writer.write(room_id, partial(_leave, guests[start : start + _AT_ONCE]))


def _surely_opens(row: EventRow) -> bool:
    """Tell whether a row let guests in, and is what the state became; most rooms are made with such a one."""
    is_plain = row.state_changes == (GUEST_ACCESS,) and row.room_snapshot is not None
    return is_plain and _opens(row)


def _opens(row: EventRow) -> bool:
    return row.key == GUEST_ACCESS and row.content.get("guest_access") == "can_join"


def _leave(guests: Sequence[str], draft: Draft) -> None:
    row = draft.state.row(GUEST_ACCESS)
    if row is not None and _opens(row):
        return
    for user_id in guests:
        if draft.membership_of(user_id) == "join":
            draft.add(sender=user_id, type=MEMBER, state_key=user_id, content={"membership": "leave"})
