"""Who polls moves on from a worker that has too much to do while another one has not.

A connection stays for long where it came. Most come to the worker that writes: whoever writes does, and
behind a proxy, whose connections carry what many people ask, nearly all do in time. And a worker that is
added would get none of those that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ranvier.cluster.members import Members
from ranvier.cluster.writers import BUSY, LESS_BUSY

_ROLE: Final = "sync"
_EVERY_S: Final = 0.02
"""Loads are told once a second: who gives away many before that is heard of empties itself."""


class Relief:
    """Find the worker of this machine that is to serve who polls here."""

    def __init__(self, members: Members, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._members = members
        self._clock = clock
        self._next_s = 0.0

    def is_due(self) -> bool:
        """Tell whether this worker has too much to do, and has given nobody away just now."""
        return self._members.own.load > BUSY and self._clock() >= self._next_s

    def find(self) -> str | None:
        """Give the worker that has the least to do, if that is clearly less; it is asked for one client."""
        own = self._members.own
        self._next_s = self._clock() + _EVERY_S
        fitting = [
            member
            for member in self._members.others()
            if member.heads == own.heads
            and member.fronted
            and member.takes(_ROLE)
            and member.load < own.load - LESS_BUSY
        ]
        return min(fitting, key=lambda member: member.load).name if fitting else None
