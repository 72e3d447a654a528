"""Who goes on with the connections of a worker that is drained while it runs on."""

from __future__ import annotations

import itertools
from typing import Final

from ranvier.cluster.members import Members
from ranvier.cluster.placement import ranked
from ranvier.log.standstill import Standstill
from ranvier.processes.request_head import PEEKED_BYTES, key_of

_ROLE: Final = "client"


class Successors:
    """Name the worker that the front of this machine would now give a connection to."""

    def __init__(self, members: Members, standstill: Standstill) -> None:
        self._members = members
        self._standstill = standstill
        self._turns = itertools.count()

    def __call__(self, begun: bytes) -> str | None:
        """Give its name, by what was read of the connection's next request; None if there is none.

        None, too, while this worker alone knows that a request may come too late.
        """
        if self._standstill.has_just_ended():
            return None
        members = self._members
        names = [
            member.name
            for member in members.others()
            if member.fronted
            and member.heads == members.own.heads
            and member.takes(_ROLE)
            and members.is_fresh(member.name)
        ]
        if not names:
            return None
        kind, key = key_of(begun[:PEEKED_BYTES]) or ("", str(next(self._turns)))
        return ranked(kind, key, names)[0]
