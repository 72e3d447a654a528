"""Who types in one room, as processes tell each other of it."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec
import orjson

TYPING: Final = "typists"
"""The kind of what is told of a room when somebody begins, goes on or stops."""

WHOLE_LIST: Final = "typing"
"""Likewise by processes of release 0.1.0, as a mere list of users."""

MAX_TYPING: Final = 50
"""Users of one room that are told of at a time: more is no use, and each change is sent to everybody."""


class Said(msgspec.Struct, array_like=True, frozen=True):
    """What the process ``by`` tells: that a user is among the ``typists`` now, or not.

    ``typists`` are all of the room that the process knows of, in milliseconds from now until when; who heard
    all up to the count ``before`` has no need of the others. With ``seen`` it only counts if nothing was said
    of the user after that count.
    """

    by: str
    user_id: str
    typists: list[tuple[str, int]]
    before: int
    seen: int | None = None


class Typist(NamedTuple):
    """One who types: ``until`` which time (monotonic), told with the count ``at`` by the process ``by``."""

    until: float
    at: int
    by: str


class Typists(NamedTuple):
    """Who types in a room: ``body`` is the JSON of ``user_ids``; ``at`` the count of the bus."""

    user_ids: tuple[str, ...]
    body: bytes
    at: int


class TypingRoom:
    """One room: what is told of a user is in force until the next is, and in one order everywhere.

    So processes that tell of different users at once do not undo what the other said.
    """

    def __init__(self) -> None:
        self.typists: dict[str, Typist] = {}
        self.shown = Typists((), b"[]", 0)
        self._heard = 0

    def message(
        self, by: str, user_id: str, until: float | None, now: float, *, seen: int | None = None
    ) -> bytes:
        """Give what is to be told: a user types ``until`` then, or no more (None)."""
        known = {name: typist.until for name, typist in self.typists.items()}
        if until is None:
            known.pop(user_id, None)
        else:
            known[user_id] = until
        typists = [(name, max(1, math.ceil((end - now) * 1000))) for name, end in known.items()]
        return msgspec.json.encode(Said(by, user_id, typists, self._heard, seen))

    def hear(self, said: Said, count: int, now: float) -> set[str]:
        """Take what was told; give the users of whom something is new."""
        if count <= self._heard:
            return set()
        told = {name: Typist(now + left_ms / 1000, count, said.by) for name, left_ms in said.typists}
        has_gap, self._heard = said.before > self._heard, count
        if has_gap:
            concerned = {*told, *self.typists}
            # What was missed is in what the other knew, and comes before anything that is told from now on.
            self.typists = {
                name: it if name == said.user_id else it._replace(at=said.before, by="")
                for name, it in told.items()
            }
        elif self._is_late(said):
            return set()
        else:
            concerned = {said.user_id}
            self._put(said.user_id, told.get(said.user_id))
        user_ids = tuple(self.typists)[:MAX_TYPING]
        if has_gap or user_ids != self.shown.user_ids:
            self.shown = Typists(user_ids, orjson.dumps(list(user_ids)), count)
        return concerned

    def _is_late(self, said: Said) -> bool:
        known = self.typists.get(said.user_id)
        return said.seen is not None and (known is None or known.at > said.seen)

    def _put(self, user_id: str, typist: Typist | None) -> None:
        if typist is None:
            self.typists.pop(user_id, None)
        else:
            self.typists[user_id] = typist
