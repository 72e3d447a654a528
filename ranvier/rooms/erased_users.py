"""Users who wished to be erased, and since when: what decides who still sees what they sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from ranvier.log.tail import Tail
from ranvier.storage.erasure import ErasureStore
from ranvier.wire.log_rows import LogRow, Row

_ACCOUNT_ROWS: Final = "access_token"


class ErasedUsers:
    """Know all erased users of this server, in memory: few, and asked about for every event that is shown.

    They are read once; from then on the log tells of each new one.
    """

    def __init__(self, *, store: ErasureStore, tail: Tail) -> None:
        self._store = store
        self._positions: dict[str, int] = {}
        self._loaded = False
        self._lock = asyncio.Lock()
        tail.listen(self._apply, changes=True)

    async def all(self) -> Mapping[str, int]:
        """Give the log position of the wish of each erased user. The answer is live: do not change it."""
        if not self._loaded:
            async with self._lock:
                if not self._loaded:
                    for user_id, pos in (await self._store.erased()).items():
                        self._positions.setdefault(user_id, pos)
                    self._loaded = True
        return self._positions

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if (
                isinstance(row, LogRow)
                and row.kind == _ACCOUNT_ROWS
                and row.key == "account"
                and row.user_id is not None
                and orjson.loads(row.body or b"{}").get("erased")
            ):
                # Who wishes it again was erased from the first time on.
                self._positions.setdefault(row.user_id, row.pos)
