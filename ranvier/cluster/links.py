"""The links of this worker: one to each other worker, opened as soon as it is known."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ranvier.cluster.link import Link, connect
from ranvier.cluster.members import Members
from ranvier.wire.members import Member

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.25


class Links:
    """Keep a link to every other worker. ``run`` must be running in a task of the process.

    A link that breaks is the first news of a death.
    """

    def __init__(self, *, members: Members, secret: str) -> None:
        self._members = members
        self._secret = secret
        self._links: dict[str, tuple[str, Link]] = {}  # by name: of which instance
        self._opening: set[str] = set()
        self._changed = asyncio.Event()
        members.listen(self._on_change)

    def find(self, name: str) -> Link | None:
        """Give the open link to a worker, if there is one."""
        known = self._links.get(name)
        return known[1] if known is not None and known[1].is_open else None

    async def start(self) -> None:
        """Greet everybody who is there, before anybody is told that this worker is ready."""
        await asyncio.gather(*(self._open(member) for member in self._members.others()))

    async def run(self) -> None:
        """Open what is missing, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for member in self._members.others():
                    if not self._has(member) and member.name not in self._opening:
                        tasks.create_task(self._open(member))
                missing = any(not self._has(member) for member in self._members.others())
                try:
                    async with asyncio.timeout(_RETRY_S if missing else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()

    def close(self) -> None:
        """Close all links."""
        for _, link in self._links.values():
            link.close()

    def _has(self, member: Member) -> bool:
        known = self._links.get(member.name)
        return known is not None and known[0] == member.instance and known[1].is_open

    async def _open(self, member: Member) -> None:
        self._opening.add(member.name)
        try:
            link = await connect(
                member.address,
                secret=self._secret,
                announcement=self._members.announcement(),
                lost=lambda: self._on_lost(member),
            )
        except (OSError, TimeoutError) as error:
            logger.debug("Worker %s cannot be reached at %s: %s", member.name, member.address, error)
            if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                self._members.lose(member.name, member.instance)
        else:
            old = self._links.get(member.name)
            self._links[member.name] = (member.instance, link)
            if old is not None:
                old[1].close()
        finally:
            self._opening.discard(member.name)
            self._changed.set()

    def _on_lost(self, member: Member) -> None:
        known = self._links.get(member.name)
        if known is not None and known[0] == member.instance and not known[1].is_open:
            del self._links[member.name]
            self._members.lose(member.name, member.instance)

    def _on_change(self) -> None:
        self._changed.set()
        gone = [name for name in self._links if self._members.find(name) is None]
        for name in gone:
            self._links.pop(name)[1].close()
        announcement = self._members.announcement()
        for _, link in self._links.values():
            link.tell(announcement)
