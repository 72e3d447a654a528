"""The links of this worker: one to each other worker, opened as soon as it is known."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ranvier.cluster.link import Link, connect
from ranvier.cluster.members import Members, placing
from ranvier.wire.members import Member

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.25
_LONGEST_RETRY_S: Final = 5.0
_WORTH_A_WARNING: Final = 3


class Links:
    """Keep a link to every other worker. ``run`` must be running in a task of the process.

    A link that breaks is the first news of a death.
    """

    def __init__(self, *, members: Members, secret: str) -> None:
        self._members = members
        self._secret = secret
        self._links: dict[str, tuple[str, Link]] = {}  # by name: of which instance
        self._opening: set[str] = set()  # instances
        self._failed: dict[str, int] = {}  # by instance: how often it could not be reached
        self._told = placing(members.own)
        self._changed = asyncio.Event()
        members.listen(self._on_change)

    def find(self, name: str) -> Link | None:
        """Give the open link to a worker, if there is one."""
        known = self._links.get(name)
        return known[1] if known is not None and known[1].is_open else None

    def notify(self, body: bytes) -> None:
        """Tell all workers that a link is open to, now, something that may be lost."""
        for _, link in self._links.values():
            link.notify(body)

    async def start(self) -> None:
        """Greet everybody who is there, before anybody is told that this worker is ready."""
        others = self._members.others()
        self._opening.update(member.instance for member in others)
        await asyncio.gather(*(self._open(member, pause=False) for member in others))

    async def run(self) -> None:
        """Open what is missing, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for member in self._members.others():
                    if not self._has(member) and member.instance not in self._opening:
                        self._opening.add(member.instance)
                        tasks.create_task(self._open(member))
                await self._changed.wait()
                self._changed.clear()

    def close(self) -> None:
        """Close all links."""
        for _, link in self._links.values():
            link.close()

    def _has(self, member: Member) -> bool:
        known = self._links.get(member.name)
        return known is not None and known[0] == member.instance and known[1].is_open

    async def _open(self, member: Member, *, pause: bool = True) -> None:
        """Open a link; where that fails it is tried again after a while, longer each time."""
        try:
            link = await connect(
                member.address,
                secret=self._secret,
                announcement=self._members.announcement(),
                lost=lambda: self._on_lost(member),
            )
        except (OSError, TimeoutError, ValueError) as error:  # the last for an address that is none
            times = self._failed[member.instance] = self._failed.get(member.instance, 0) + 1
            # At first it may be ending, or beginning.
            level = logging.WARNING if times == _WORTH_A_WARNING else logging.DEBUG
            logger.log(level, "Worker %s cannot be reached at %s: %r", member.name, member.address, error)
            if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                self._members.lose(member.name, member.instance)
            elif pause:
                await asyncio.sleep(min(_RETRY_S * 2 ** min(times, 10), _LONGEST_RETRY_S))
        else:
            known = self._members.find(member.name)
            if known is not None and known.instance != member.instance:
                link.close()  # meanwhile another one took its name, and perhaps its place
                return
            old = self._links.get(member.name)
            self._links[member.name] = (member.instance, link)
            self._failed.pop(member.instance, None)
            if old is not None:
                old[1].retire()
        finally:
            self._opening.discard(member.instance)
            self._changed.set()

    def _on_lost(self, member: Member) -> None:
        known = self._links.get(member.name)
        if known is not None and known[0] == member.instance and not known[1].is_open:
            del self._links[member.name]
            self._members.lose(member.name, member.instance)

    def _on_change(self) -> None:
        self._changed.set()
        instances = {member.instance for member in self._members.others()}
        self._failed = {it: times for it, times in self._failed.items() if it in instances}
        gone = [name for name in self._links if self._members.find(name) is None]
        for name in gone:
            self._links.pop(name)[1].retire()
        if (own := placing(self._members.own)) == self._told:
            return  # it is others who changed
        self._told = own
        announcement = self._members.announcement()
        for _, link in self._links.values():
            link.tell(announcement)
