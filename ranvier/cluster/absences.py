"""Workers that are gone and stay away: one of those alive takes over what they watched over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from ranvier.cluster.members import Members
from ranvier.cluster.placement import PROCESS, Placement
from ranvier.spec.errors import MatrixError

logger = logging.getLogger(__name__)

LOOK_S: Final = 10.0
"""A worker that is missing for so long is not being started again: mostly that takes two or three seconds."""


class Absences:
    """Look now and then whether somebody left something behind. ``run`` must be running.

    ``left_by`` gives the names of those who watch over something, the dead among them. What is looked at is
    lasting, so it makes no difference when a worker died, or whether anybody was there to see it.
    """

    def __init__(
        self,
        *,
        members: Members,
        placement: Placement,
        left_by: Callable[[], Awaitable[Collection[str]]],
        take_over: Callable[[str], Awaitable[None]],
    ) -> None:
        self._members = members
        self._placement = placement
        self._left_by = left_by
        self._take_over = take_over
        self._missing: set[str] = set()
        self._taken: set[str] = set()

    async def look(self) -> None:
        """Take over from those who were missing the last time, too, and are placed here. Raises 503."""
        if not self._members.knows_all:
            self._missing.clear()
            return
        missing = set(await self._left_by()) - {member.name for member in self._members.alive()}
        before, self._missing = self._missing, missing
        self._taken &= missing
        for name in missing & before:
            if self._placement.is_here(PROCESS, name):
                if name not in self._taken:
                    logger.info("Worker %s stays away; this one takes over from it", name)
                    self._taken.add(name)
                await self._take_over(name)

    async def run(self) -> None:
        """Look again and again, for ever; without a database, later."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except MatrixError as error:
                logger.debug("Cannot see what others left behind: %s", error)
            except Exception:
                logger.exception("Cannot take over what others left behind")
