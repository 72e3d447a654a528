"""Rooms that all of this server's users forgot are removed, ``forgotten_room_retention_period`` later.

First the log takes the room away: in the commit that says so nobody can read or write it any more, unless it
moved on since it was found to be forgotten. Then what is stored of it is removed in small pieces, each in a
transaction that only the process which has the job may make. The table ``purged_rooms`` says what is left,
so a restart, or another process, goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.storage.job_leases import Transactions
from ranvier.storage.room_purges import PurgedRoom, RoomPurgeStore
from ranvier.wire.log_rows import PURGED_ROOM, LogRow

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S: Final = 600.0
_ROOMS_AT_ONCE: Final = 20
_PAUSE_S: Final = 0.02
"""Between two pieces: others use the same disk."""


class RoomPurge:
    """Remove forgotten rooms. ``retention_ms`` is how long they are kept, None for ever."""

    def __init__(
        self, *, store: RoomPurgeStore, appender: Appender, clock: Clock, retention_ms: int | None
    ) -> None:
        self._store = store
        self._appender = appender
        self._clock = clock
        self._retention_ms = retention_ms

    async def run(self, transactions: Transactions) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep(transactions)
            except MatrixError as error:
                logger.warning("Forgotten rooms can not be removed now: %s", error.message)
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self, transactions: Transactions) -> None:
        """Remove what is left of rooms that are gone, and the rooms that may go by now."""
        await self._remove_pending(transactions)
        if self._retention_ms is None:
            return
        cutoff_ms, after = self._clock.now_ms() - self._retention_ms, ""
        while page := await self._store.candidates(after, cutoff_ms, _ROOMS_AT_ONCE):
            after = page[-1].room_id
            if gone := [room for room in page if room.forgotten]:
                await self._appender.append_rows(
                    [LogRow(kind=PURGED_ROOM, room_id=room.room_id, key=str(room.head)) for room in gone]
                )
                await self._remove_pending(transactions)
            await asyncio.sleep(_PAUSE_S)

    async def _remove_pending(self, transactions: Transactions) -> None:
        for room in await self._store.pending():
            await self._remove(room, transactions)
            logger.info("Removed room %s, which everybody forgot", room.room_id)

    async def _remove(self, room: PurgedRoom, transactions: Transactions) -> None:
        more = True
        while more:
            async with transactions() as connection:
                more = await self._store.remove_piece(connection, room)
            await asyncio.sleep(_PAUSE_S)
