"""Which worker is best asked for a room, a user, a process: rendezvous hashing over those alive.

No list, no number of shards: each (key, worker) has a weight, and the heaviest worker has the key. When a
worker comes or goes only its keys move. Workers may disagree for a moment; that costs time, not
correctness.

Source: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

from ranvier.cluster.members import Members
from ranvier.cluster.writers import room_writers
from ranvier.wire.members import BACKGROUND, Member

ROOM: Final = "room"
READ: Final = "read"
USER: Final = "user"
PROCESS: Final = "process"

_ROLES: Final = {
    READ: "client",
    USER: "sync",
    PROCESS: BACKGROUND,
}
_MAX_KEPT: Final = 50_000
_LONGEST_KEPT: Final = 255  # as the ids of Matrix; who asks for something longer may be anybody


def ranked(kind: str, key: str, names: Iterable[str]) -> list[str]:
    """Give worker names, the one that has the key first, then those that stand in for it."""
    return sorted(names, key=lambda name: _weight(kind, key, name), reverse=True)


def _weight(kind: str, key: str, name: str) -> bytes:
    return blake2b(f"{kind}\0{key}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Placement:
    """Say who has what, as this worker sees the cluster now."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._generation = -1
        self._known: dict[tuple[str, str], Member] = {}
        self._fitting: dict[str, dict[str, Member]] = {}  # by kind and name

    def place(self, kind: str, key: str) -> Member:
        """Give the worker that has a key: of those with the role, or of all if none has it."""
        if self._generation != self._members.generation:
            self._generation = self._members.generation
            self._known.clear()
            self._fitting.clear()
        if len(key) > _LONGEST_KEPT:
            return self._choose(kind, key)
        known = self._known.get((kind, key))
        if known is None:
            if len(self._known) >= _MAX_KEPT:
                self._known.clear()
            known = self._known[kind, key] = self._choose(kind, key)
        return known

    def nearby(self, kind: str, key: str, names: Sequence[str]) -> str:
        """Give the one of some workers that a key is best placed on; this one if there are none."""
        own = self._members.own.name
        if len(names) == 1:
            return names[0]  # the usual case
        return ranked(kind, key, names)[0] if names else own

    def is_near(self, kind: str, key: str) -> bool:
        """Tell whether a worker of this machine has a key."""
        return self.place(kind, key).heads == self._members.own.heads

    def is_here(self, kind: str, key: str) -> bool:
        """Tell whether this worker has a key."""
        return self.place(kind, key).name == self._members.own.name

    def _choose(self, kind: str, key: str) -> Member:
        fitting = self._fitting.get(kind)
        if fitting is None:
            fitting = self._fitting[kind] = self._find_fitting(kind)
        # Without a choice, as where one worker writes, there is nothing to compute.
        name = ranked(kind, key, fitting)[0] if len(fitting) > 1 else next(iter(fitting))
        return fitting[name]

    def _find_fitting(self, kind: str) -> dict[str, Member]:
        alive: Sequence[Member] = self._members.alive()
        fitting = room_writers(alive) if kind == ROOM else [it for it in alive if it.takes(_ROLES[kind])]
        return {member.name: member for member in fitting or alive}
