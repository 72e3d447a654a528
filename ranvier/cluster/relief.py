"""Who polls moves on from a worker that has too much to do while another one has not.

A connection stays for long where it came. Most come to the worker that writes: whoever writes does, and
behind a proxy, whose connections carry what many people ask, nearly all do in time. And a worker that is
added would get none of those that are there.

Loads are told once a second and are those of the second before. So it is decided how many go, and waited
until that shows, before more do; if it does not show, longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ranvier.cluster.members import Members
from ranvier.cluster.writers import BUSY, LESS_BUSY

_ROLE: Final = "sync"
_SHOWS_AFTER_S: Final = 3.0
_LONGEST_PAUSE_S: Final = 120.0
_SHOWS: Final = 0.05
_EVERY_S: Final = 0.02
"""Each costs some tenths of a millisecond."""


class Relief:
    """Find the worker of this machine that is to serve who polls here."""

    def __init__(self, members: Members, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._members = members
        self._clock = clock
        self._next_s = self._decide_s = 0.0
        self._name = ""
        self._left = 0
        self._pause_s = _SHOWS_AFTER_S
        # What this worker used, and how many waited, before so many had gone.
        self._load, self._waiting, self._gone = 0.0, 0, 0
        self._other_load, self._since_s = 0.0, 0.0

    def is_due(self) -> bool:
        """Tell whether this worker has too much to do, and somebody may go."""
        return self._members.own.load > BUSY and self._clock() >= self._next_s

    def find(self) -> str | None:
        """Give the worker to which one client is to go; None if nobody is to go now."""
        now = self._clock()
        if now >= self._decide_s:
            self._judge()
            self._left = self._choose()
            self._decide_s = now + self._pause_s
        if not self._left:
            self._next_s = self._decide_s
            return None
        self._next_s = now + _EVERY_S
        self._left -= 1
        self._gone += 1
        return self._name

    def _judge(self) -> None:
        """See whether it helped; where something else takes the time, fewer go, and less often."""
        own, now = self._members.own, self._clock()
        promised = self._load * self._gone / max(self._waiting, 1)
        is_old = now - self._since_s > _LONGEST_PAUSE_S
        if self._gone and promised < _SHOWS and not is_old:
            return  # that tells nothing yet
        if self._gone and not is_old:
            # Who has more to do than there is time for uses all of it as before; but the other one uses more.
            other = self._members.find(self._name)
            more = 0.0 if other is None else other.load - self._other_load
            helped = max(self._load - own.load, more) >= promised / 2
            self._pause_s = _SHOWS_AFTER_S if helped else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._load, self._waiting, self._gone = own.load, own.figures.sync_waiting, 0
        self._since_s = now

    def _choose(self) -> int:
        """Choose the worker that has the least to do, if that is clearly less, and give how many it gets."""
        own = self._members.own
        near = [member for member in self._members.others() if member.heads == own.heads]
        fitting = [
            member
            for member in near
            if member.fronted
            and member.takes(_ROLE)
            and member.load < own.load - LESS_BUSY
            and self._members.is_fresh(member.name)
        ]
        if not fitting:
            return 0
        least = min(fitting, key=lambda member: member.load)
        if not self._gone or least.name != self._name:
            self._name, self._other_load = least.name, least.load
        # As many as make both alike; the others that have too much to do choose the same one.
        share = (own.load - least.load) / 2 / own.load
        share /= 1 + sum(member.load > BUSY for member in near)
        share *= _SHOWS_AFTER_S / self._pause_s
        return max(1, int(own.figures.sync_waiting * share))
