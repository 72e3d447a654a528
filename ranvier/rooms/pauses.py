"""Leave a room to another worker for a moment, so that it is not overtaken for ever."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter
from ranvier.spec.errors import MatrixError

PAUSE_S: Final = 0.25


class RoomPauses:
    """Stop writing into rooms for others.

    A worker with much to write in a room has its next commit ready when the last one is done. Another one
    must hear of that commit first, so it would lose each time. It asks for a pause, and there is one.
    """

    def __init__(self, *, writer: RoomWriter, tail: Tail, tasks: asyncio.TaskGroup) -> None:
        self._writer = writer
        self._tail = tail
        self._tasks = tasks

    async def begin(self, room_id: str) -> int | None:
        """Give how far the log has come when this process stops writing into a room; None if it does not.

        The pause ends with the first write of anybody else, or after ``PAUSE_S``.
        """
        begun: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(self._pause(room_id, begun))
        return await begun

    async def _pause(self, room_id: str, begun: asyncio.Future[int | None]) -> None:
        try:
            await self._writer.take_turn(room_id, partial(self._wait, room_id, begun))
        except MatrixError:  # too much waits for this room
            _answer(begun, None)

    async def _wait(self, room_id: str, begun: asyncio.Future[int | None]) -> None:
        if begun.done():
            return  # whoever asked is gone
        loop = asyncio.get_running_loop()
        started, until = self._tail.pos, loop.time() + PAUSE_S
        _answer(begun, started)
        while (left := until - loop.time()) > 0 and not self._tail.rooms_with_events([room_id], started):
            await self._tail.wait_for(self._tail.pos + 1, left)


def _answer(begun: asyncio.Future[int | None], pos: int | None) -> None:
    if not begun.done():  # whoever asked may be gone
        begun.set_result(pos)
