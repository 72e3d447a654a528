"""Whether there is, or was a moment ago, a worker of some kind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from ranvier.cluster.members import Members
from ranvier.wire.members import Member

_UNHEARD_S: Final = 60.0
"""So long a worker that is not heard of may go on all the same: what is lost may be only our way to it."""


class Lately:
    """Know whether another worker is there, or was in the last minute, of whom something is so."""

    def __init__(self, members: Members, is_so: Callable[[Member], bool]) -> None:
        self._members = members
        self._is_so = is_so
        self._until = -math.inf
        members.listen(self._on_change)

    @property
    def any(self) -> bool:
        """Whether there is or was one."""
        return time.monotonic() < self._until

    def _on_change(self) -> None:
        if any(self._is_so(member) for member in self._members.others()):
            self._until = math.inf
        elif self._until == math.inf:
            self._until = time.monotonic() + _UNHEARD_S
