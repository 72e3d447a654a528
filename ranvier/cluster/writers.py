"""How many of a machine's workers write into rooms: no more than its load needs.

Events that come to one worker share its turns and its commits, so the same events cost several workers a
good deal more than one: with four of them more than twice as much. Rooms are therefore placed on the worker
of a machine that runs longest, until it is busy while the machine is not; then on one more, and so on. The
others serve reads, and follow the log: they write at once if they have to.

The longest running worker counts, and announces the number; the others repeat it, so that its successor
knows. Workers that disagree for a moment lose time, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from ranvier.cluster.members import BEAT_S, Members
from ranvier.wire.members import Member

logger = logging.getLogger(__name__)

ROLE: Final = "client"
BUSY: Final = 0.8
"""The share of a core from which on a worker is to be relieved."""

_SPARE_CORES: Final = 1.0
_MORE_AFTER_S: Final = 2.0
_FEWER_BELOW: Final = 0.5
_FEWER_AFTER_S: Final = 10.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

SpareCores = Callable[[], float]
"""Gives how many cores of this machine did nothing since it was asked last."""


def room_writers(alive: Iterable[Member]) -> list[Member]:
    """Give the workers that rooms are placed on, of all machines; nobody if nobody takes requests."""
    machines: dict[str, list[Member]] = {}
    for member in alive:
        if member.takes(ROLE):
            machines.setdefault(member.heads, []).append(member)
    found = []
    for members in machines.values():
        members.sort(key=_seniority)
        found += members[: members[0].writers or len(members)]
    return found


def _seniority(member: Member) -> tuple[int, str]:
    return member.started_ts, member.name


class Writers:
    """Count the writers of this machine. ``run`` must be running in a task of the process.

    ``always`` has rooms placed on all workers, however little there is to do.
    """

    def __init__(
        self, members: Members, *, always: bool = False, spare_cores: SpareCores | None = None
    ) -> None:
        self._members = members
        self._always = always
        self._spare_cores = spare_cores or MachineIdle()
        self._generation = -1
        self._names: frozenset[str] = frozenset()
        self._due_since = 0.0
        self._due = 0
        self._listener: Callable[[bool], None] = lambda writes: None
        members.set_writers(0 if always else 1)
        members.listen(self._on_change)

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Have ``listener`` told, now and with each change, whether rooms are placed on this worker."""
        self._listener = listener
        self._on_change()

    def _on_change(self) -> None:
        self._listener(self.writes(self._members.own.name))

    def writes(self, name: str) -> bool:
        """Tell whether rooms are placed on a worker."""
        if self._generation != self._members.generation:
            self._generation = self._members.generation
            self._names = frozenset(member.name for member in room_writers(self._members.alive()))
        return name in self._names

    @property
    def yields(self) -> bool:
        """Whether this worker is to leave rooms to those that write: it is none, or has too much to do."""
        own = self._members.own
        return not self.writes(own.name) or (own.load > BUSY and own.writers > 1)

    async def run(self) -> None:
        """Count again with each announcement, for ever."""
        while True:
            await asyncio.sleep(BEAT_S)
            self.count(time.monotonic())

    def count(self, now_s: float) -> None:
        """Take a worker more or one less where that is due; ``now_s`` is of a monotonic clock."""
        spare, own = self._spare_cores(), self._members.own
        peers = sorted((it for it in self._members.alive() if _is_peer(it, own)), key=_seniority)
        if self._always or not peers:
            return
        if peers[0].name != own.name:
            # Whoever succeeds goes on with it. (0: it does not count, and its successor begins anew.)
            self._set(peers[0].writers or own.writers)
            return
        writers = min(own.writers, len(peers))
        load = sum(member.load for member in peers[:writers])
        if load < _FEWER_BELOW * (writers - 1):
            step = self._long(-1, _FEWER_AFTER_S, now_s)
        elif load > BUSY * writers and writers < len(peers) and spare >= _SPARE_CORES:
            step = self._long(1, _MORE_AFTER_S, now_s)
        else:
            step = self._long(0, 0.0, now_s)
        if step:
            logger.info("Rooms are placed on %d of %d workers of this machine", writers + step, len(peers))
        self._set(writers + step)

    def _long(self, step: int, for_s: float, now_s: float) -> int:
        """Give a step if it has been due for so long, else 0."""
        if step != self._due:
            self._due, self._due_since = step, now_s
        if now_s - self._due_since < for_s:
            return 0
        self._due_since = now_s
        return step

    def _set(self, writers: int) -> None:
        if writers != self._members.own.writers:
            self._members.set_writers(writers)


def _is_peer(member: Member, own: Member) -> bool:
    return member.heads == own.heads and member.takes(ROLE)


class MachineIdle:
    """Read how many cores of the machine do nothing (source: proc(5), ``/proc/stat``)."""

    def __init__(self) -> None:
        self._read_s, self._idle_s = time.monotonic(), _idle_s()

    def __call__(self) -> float:
        """Give their number since this was called last."""
        now, idle = time.monotonic(), _idle_s()
        cores = (idle - self._idle_s) / max(now - self._read_s, 0.001)
        self._read_s, self._idle_s = now, idle
        return cores


def _idle_s() -> float:
    """Give for how long the cores of this machine have done nothing, or waited for a disk, all together."""
    with open("/proc/stat", encoding="ascii") as file:
        idle, iowait = file.readline().split()[4:6]
    return (int(idle) + int(iowait)) / _TICKS_PER_S
