"""Writing down what was counted as unread, so that it need not be counted again after a restart.

Nothing hangs on it: what is lost is counted anew from the events. So it is written now and then, for many
users together, and nobody who syncs waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from ranvier.spec.errors import MatrixError
from ranvier.storage.batches import write_each
from ranvier.storage.unread import KeptTally, UnreadStore

logger = logging.getLogger(__name__)

WRITE_INTERVAL_S: Final = 10.0
_AT_ONCE: Final = 50
_MOST: Final = 20_000


class Tally(Protocol):
    """What was counted for a user in a room, up to a position."""

    upto: int

    def written(self) -> bytes:
        """Write all that is known."""


class TallyKeeping:
    """Gather what is to be written. ``run`` must be running in a task of the process."""

    def __init__(self, *, store: UnreadStore) -> None:
        self._store = store
        self._due: dict[tuple[str, int], tuple[str, Tally]] = {}

    def note(self, user_id: str, room_nid: int, rules: str, tally: Tally) -> None:
        """Have a tally written, as it will be then; past a bound it is not."""
        if len(self._due) < _MOST:
            self._due[user_id, room_nid] = (rules, tally)

    async def flush(self) -> None:
        """Write what was noted. What can not be written now is left out: the next one will do as well."""
        due, self._due = list(self._due.items()), {}
        for first in range(0, len(due), _AT_ONCE):
            rows = [
                KeptTally(user_id, room_nid, tally.upto, rules, tally.written())
                for (user_id, room_nid), (rules, tally) in due[first : first + _AT_ONCE]
            ]
            try:
                await write_each(self._store.keep, rows)
            except MatrixError as error:
                logger.warning("Can not write what is unread: %s", error.message)
                return
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Write now and then, and once more when the process ends."""
        try:
            while True:
                await asyncio.sleep(WRITE_INTERVAL_S)
                await self.flush()
        finally:
            await self.flush()
