"""Claims on rooms: a worker that others overtake again and again is let write first.

A worker with much to write in a room has its next commit ready when the last one is done. Another one must
hear of that commit first, so it would lose each time. It claims the room then: it tells all others, and they
write nothing there until it has, or for ``CLAIM_S``. Nothing waits for an answer, and nothing hangs on any of
it but speed: the room's head is compared in the commit whoever writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from ranvier.cluster.frames import UNREADABLE

logger = logging.getLogger(__name__)

CLAIM_S: Final = 0.25


class _Notice(msgspec.Struct, array_like=True, frozen=True):
    """Claim a room, or give it back: ``pos`` is how far the log has come by then, None for a claim."""

    worker: str
    room_id: str
    pos: int | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Notice).decode


class RoomClaims:
    """Know who has claimed which room. ``tell`` brings a notice to all others, or to those who are there.

    Of several who claim one room those whose names come first go first, so that no two wait for each other.
    """

    def __init__(self, *, own_name: str, tell: Callable[[bytes], None]) -> None:
        self._own_name = own_name
        self._tell = tell
        self._own: set[str] = set()
        self._others: dict[str, dict[str, asyncio.TimerHandle]] = {}
        self._given_back: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def claim(self, room_id: str) -> None:
        """Have others write nothing into a room for now; again with each time that one is overtaken."""
        self._own.add(room_id)
        self._tell(_encode(_Notice(self._own_name, room_id)))

    def give_back(self, room_id: str, pos: int) -> None:
        """Let others write into a room again, on top of what was written up to ``pos``; if it was claimed."""
        if room_id in self._own:
            self._own.remove(room_id)
            self._tell(_encode(_Notice(self._own_name, room_id, pos)))

    def hear(self, body: bytes) -> None:
        """Take the notice of another worker. What is none (of another version) is left out."""
        try:
            notice = _decode(body)
        except UNREADABLE as error:
            logger.debug("A notice of another worker is unreadable: %s", error)
            return
        self._forget(notice.room_id, notice.worker, notice.pos)
        if notice.pos is None:
            timer = asyncio.get_running_loop().call_later(
                CLAIM_S, self._forget, notice.room_id, notice.worker, None
            )
            self._others.setdefault(notice.room_id, {})[notice.worker] = timer

    def must_wait(self, room_id: str) -> bool:
        """Tell whether somebody else is to write into a room first."""
        others = self._others.get(room_id)
        if others is None:
            return False
        return room_id not in self._own or min(others) < self._own_name

    async def wait(self, room_id: str) -> int:
        """Wait until nobody else is to write first; give the position that is to be followed before.

        A claim that is behind others' may end before it is its turn, so it is made again when it is. One at a
        time may wait for a room.
        """
        claimed_again = room_id in self._own and self.must_wait(room_id)
        while self.must_wait(room_id):
            self._waiting[room_id] = asyncio.get_running_loop().create_future()
            try:
                await self._waiting[room_id]
            finally:
                del self._waiting[room_id]
        if claimed_again:
            self.claim(room_id)
        return self._given_back.pop(room_id, 0)

    def _forget(self, room_id: str, worker: str, pos: int | None) -> None:
        others = self._others.get(room_id)
        timer = None if others is None else others.pop(worker, None)
        if others is None or timer is None:
            return
        timer.cancel()
        if not others:
            del self._others[room_id]
        waiting = self._waiting.get(room_id)
        if waiting is None:
            return
        if pos is not None:
            self._given_back[room_id] = max(pos, self._given_back.get(room_id, 0))
        if not waiting.done():
            waiting.set_result(None)
