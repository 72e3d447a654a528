"""How many of a machine's workers write into rooms: no more than its load needs.

Events that come to one worker share its turns and its commits, so the same events cost several workers a
good deal more than one: with four of them more than twice as much. Rooms are therefore placed on the worker
of a machine that runs longest, until it is busy while the machine is not; then on one more, and so on. The
others serve what is asked for users, and follow the log: they write at once if they have to.

The longest running worker counts, and announces the number; the others repeat it, so that its successor
knows. Workers that disagree for a moment lose time, nothing else. A machine is what shares memory (see
``cluster.head_board``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from ranvier.cluster.members import BEAT_S, Members
from ranvier.log.beats import until_beat_s
from ranvier.wire.members import Member

logger = logging.getLogger(__name__)

ROLE: Final = "client"
BUSY: Final = 0.8
"""The share of a core from which on a worker is to be relieved."""
LESS_BUSY: Final = 0.2
"""How much less of a core another one is to use."""

_SPARE_CORES: Final = 1.0
_WORTH_A_WRITER: Final = 0.5
_MORE_AFTER_S: Final = 2.0
_FEWER_AFTER_S: Final = 10.0
_MANY_POLLS: Final = 50
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


def _seniority(member: Member) -> tuple[bool, int, str]:
    # Those to which no connection can move come last: all others would have to pass on what is written.
    return not member.fronted, member.started_ts, member.name


class Writers:
    """Count the writers of this machine. ``run`` must be running in a task of the process.

    ``always`` has rooms placed on all workers, however little there is to do. ``cores`` are how many they
    may use in all.
    """

    def __init__(
        self,
        members: Members,
        *,
        always: bool = False,
        cores: int | None = None,
        spare_cores: SpareCores | None = None,
    ) -> None:
        self._members = members
        self._always = always
        self._cores = cores or len(os.sched_getaffinity(0))
        self._spare_cores = spare_cores or MachineIdle()
        self._generation = -1
        self._names: frozenset[str] = frozenset()
        self._nearby: list[str] = []
        self._alone = False
        self._senior = False
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
        self._look()
        return name in self._names

    @property
    def nearby(self) -> Sequence[str]:
        """Give the names of this machine's writers."""
        self._look()
        return self._nearby

    def is_alone(self) -> bool:
        """Tell whether all rooms are placed on this worker."""
        self._look()
        return self._alone

    def _look(self) -> None:
        if self._generation != self._members.generation:
            self._generation, heads = self._members.generation, self._members.own.heads
            found = room_writers(self._members.alive())
            self._names = frozenset(member.name for member in found)
            self._alone = self._names == {self._members.own.name}
            self._nearby = [member.name for member in found if member.heads == heads]

    def yields_to(self, name: str) -> bool:
        """Tell whether this worker is to leave what is quiet to another one.

        So does one on which no rooms are placed, and one that has too much to do to one that has less. (With
        rooms placed on all workers whatever they do, none does.)
        """
        own, other = self._members.own, self._members.find(name)
        if not self.writes(own.name):
            return True
        too_much = own.writers > 1 and own.load > BUSY
        return too_much and other is not None and other.load < own.load - LESS_BUSY

    async def run(self) -> None:
        """Count again with each announcement, for ever."""
        while True:
            await asyncio.sleep(until_beat_s(BEAT_S))
            self.count(time.monotonic())

    def count(self, now_s: float) -> None:
        """Take a worker more or one less where that is due; ``now_s`` is of a monotonic clock."""
        own = self._members.own
        peers = sorted((it for it in self._members.alive() if _is_peer(it, own)), key=_seniority)
        if self._always or not peers:
            return
        if peers[0].name != own.name:
            # Whoever succeeds goes on with it. (0: it does not count, and its successor begins anew.)
            self._senior = False
            self._set(peers[0].writers or own.writers)
            return
        if not self._senior:
            self._senior = True
            self._set(max(it.writers for it in peers))
        writers = min(self._members.own.writers, len(peers))
        spare = self._spare_cores()
        # Without news nobody knows how busy the others are.
        step = self._step(peers, writers, spare) if self._members.knows_all else 0
        if self._is_long_due(step, now_s):
            writers += step
            logger.info("Rooms are placed on %d of %d workers of this machine", writers, len(peers))
        self._set(writers)

    def _step(self, peers: Sequence[Member], writers: int, spare: float) -> int:
        """Tell whether one more (1) or one less (-1) is to write, if this goes on."""
        loads = [member.load for member in peers]
        busy = sum(loads[:writers])
        others = loads[writers:]
        writing = busy - _not_writing(peers, writers)
        if writers > 1 and writing < _WORTH_A_WRITER * (writers - 1):
            return -1
        if not others or busy < BUSY * writers or writing < _WORTH_A_WRITER * writers:
            return 0
        return 1 if min(spare, self._cores - sum(loads)) >= _SPARE_CORES else 0

    def _is_long_due(self, step: int, now_s: float) -> bool:
        """Tell whether a step has been due for long enough to be taken."""
        if step != self._due:
            self._due, self._due_since = step, now_s
        if not step or now_s - self._due_since < (_MORE_AFTER_S if step > 0 else _FEWER_AFTER_S):
            return False
        self._due_since = now_s
        return True

    def _set(self, writers: int) -> None:
        if writers != self._members.own.writers:
            self._members.set_writers(writers)


def _not_writing(peers: Sequence[Member], writers: int) -> float:
    """Estimate what those who write do besides, of which no other writer would relieve them.

    That is what those do that do not write; and where many clients poll, by as much as more or fewer do.
    """
    others = peers[writers:]
    if not others:
        return 0.0
    load = sum(member.load for member in others) / len(others)
    polls = sum(member.figures.sync_waiting for member in others) / len(others)
    here = sum(member.figures.sync_waiting for member in peers[:writers])
    return load * (here / polls if polls >= _MANY_POLLS else writers)


def _is_peer(member: Member, own: Member) -> bool:
    return member.heads == own.heads and member.takes(ROLE)


class MachineIdle:
    """Read how many cores of the machine do nothing (source: proc(5), ``/proc/stat``)."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._read_s, self._idle_s = time.monotonic(), self._read()

    def __call__(self) -> float:
        """Give their number since this was called last; 0 where it cannot be known."""
        now, idle = time.monotonic(), self._read()
        cores = (idle - self._idle_s) / max(now - self._read_s, 0.001)
        self._read_s, self._idle_s = now, idle
        return max(0.0, cores)

    def _read(self) -> float:
        """Give for how long the cores have done nothing, or waited for a disk, all together, in seconds."""
        try:
            idle, iowait = self._path.read_text(encoding="ascii").split(maxsplit=6)[4:6]
            return (int(idle) + int(iowait)) / _TICKS_PER_S
        except (OSError, ValueError) as error:
            logger.debug("It cannot be known whether cores are free: %s", error)
            return 0.0
