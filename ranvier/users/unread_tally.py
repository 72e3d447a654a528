"""What one user has not read in one room: the notifications, and how many there are of each thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

import orjson

from ranvier.storage.unread import KeptTally
from ranvier.users.notes import MAIN

MAX_COUNTED: Final = 1000
"""Unread notifications of one user in one room that are counted; the newest."""
_TALLY_WEIGHT: Final = 5


class Count(NamedTuple):
    """Unread notifications, and those of them that are highlighted."""

    notifications: int
    highlights: int


NOTHING: Final = Count(0, 0)


class Counts(NamedTuple):
    """What is unread: in the whole room, its main timeline, and (by root) threads that have any."""

    total: Count
    main: Count
    threads: Mapping[str, Count]


ALL_READ: Final = Counts(NOTHING, NOTHING, {})

Notification = tuple[int, str, bool]
"""A notification: the event's position, its thread, and whether it is highlighted."""


class Shared(NamedTuple):
    """What events come to for all who go by the same rules, sent none of them and ignore nobody."""

    events: int
    senders: frozenset[str]
    unread: Sequence[Notification]


class Size:
    """Count what is held, over all users."""

    __slots__ = ("weight",)

    def __init__(self) -> None:
        self.weight = 0


class Tally:
    """What one user has not read in one room, up to a position."""

    __slots__ = (
        "_counts",
        "_highlights",
        "_notifications",
        "_size",
        "_threads",
        "_unread",
        "fresh",
        "marks",
        "unthreaded",
        "upto",
    )

    def __init__(self, after: int, size: Size) -> None:
        self.upto = after
        self.fresh = 0  # events that were counted and are not in the database
        self.unthreaded = after
        self.marks: dict[str, int] = {}
        self._unread: deque[Notification] = deque()  # in order
        # of the main timeline, and of threads that have any
        self._notifications = self._highlights = 0
        self._threads: dict[str, Count] = {}
        self._counts: Counts | None = ALL_READ
        self._size = size
        size.weight += _TALLY_WEIGHT

    @property
    def weight(self) -> int:
        return _TALLY_WEIGHT + len(self._unread)

    def release(self) -> None:
        """Count no longer among what is held."""
        self._size.weight -= self.weight
        self._size = Size()

    def read(self, thread: str, pos: int) -> None:
        """Mark a thread (or everything: an empty one) as read up to a position."""
        if thread:
            if pos <= max(self.unthreaded, self.marks.get(thread, 0)):
                return
            self.marks[thread] = pos
        elif pos <= self.unthreaded:
            return
        else:
            self.unthreaded = pos
            if pos >= self.upto:  # the receipt says as much
                self.fresh = 0
            self.marks = {root: mark for root, mark in self.marks.items() if mark > pos}
        if self._unread:
            self._keep([it for it in self._unread if it[0] > pos or (thread != "" and it[1] != thread)])

    def written(self) -> bytes:
        """Write all that is known, for the database: see ``unread_tallies.tally``."""
        steps: list[int] = []
        threads: list[tuple[int, str]] = []
        highlights: list[int] = []
        before = 0
        for index, (pos, thread, highlighted) in enumerate(self._unread):
            steps.append(pos - before)
            before = pos
            if thread != MAIN:
                threads.append((index, thread))
            if highlighted:
                highlights.append(index)
        return orjson.dumps([self.unthreaded, self.marks, steps, threads, highlights])

    def resume(self, kept: KeptTally, redacted: Collection[int]) -> None:
        """Go on from what was written, but for what came before this tally begins, or was redacted since."""
        unthreaded, marks, steps, threads, highlights = orjson.loads(kept.tally)
        self.read("", unthreaded)
        for thread, pos in marks.items():
            self.read(thread, pos)
        in_threads, highlighted = dict(threads), set(highlights)
        for index, pos in enumerate(accumulate(steps)):
            if pos not in redacted:
                self.add(pos, in_threads.get(index, MAIN), highlighted=index in highlighted)
        self.upto = max(self.upto, kept.upto)
        self.fresh = 0

    def forget(self, pos: int) -> None:
        """Forget a notification whose event was redacted."""
        self._keep([it for it in self._unread if it[0] != pos])

    def add(self, pos: int, thread: str, *, highlighted: bool) -> None:
        """Add a notification, unless it was read before it was counted."""
        if pos <= self.unthreaded or (self.marks and pos <= self.marks.get(thread, 0)):
            return
        self._append(((pos, thread, highlighted),))

    def take(self, shared: Shared) -> None:
        """Count what is the same for many."""
        self.fresh += shared.events
        unread = shared.unread
        if not unread:
            return
        if self.marks or unread[0][0] <= self.unthreaded:
            for pos, thread, highlighted in unread:
                self.add(pos, thread, highlighted=highlighted)
        else:
            self._append(unread)

    def _append(self, unread: Sequence[Notification]) -> None:
        for _, thread, highlighted in unread:
            self._change(thread, 1, highlighted)
        self._unread.extend(unread)
        self._size.weight += len(unread)
        while len(self._unread) > MAX_COUNTED:
            _, thread, highlighted = self._unread.popleft()
            self._size.weight -= 1
            self._change(thread, -1, -highlighted)

    def _change(self, thread: str, notifications: int, highlights: int) -> None:
        self._counts = None
        if thread == MAIN:
            self._notifications += notifications
            self._highlights += highlights
            return
        before = self._threads.get(thread, NOTHING)
        after = Count(before.notifications + notifications, before.highlights + highlights)
        if after.notifications:
            self._threads[thread] = after
        else:
            del self._threads[thread]

    def _keep(self, unread: list[Notification]) -> None:
        if len(unread) != len(self._unread):
            self._size.weight -= len(self._unread)
            self._unread.clear()
            self._threads.clear()
            self._notifications = self._highlights = 0
            self._counts = ALL_READ
            self._append(unread)

    def counts(self) -> Counts:
        """Give the counts."""
        if self._counts is None:
            main = _main_counts(self._notifications, self._highlights)
            self._counts = _with_threads(main.main, self._threads) if self._threads else main
        return self._counts


@lru_cache(maxsize=4096)  # most who have something to read there have as much
def _main_counts(notifications: int, highlights: int) -> Counts:
    count = Count(notifications, highlights)
    return Counts(count, count, {})


def _with_threads(main: Count, threads: Mapping[str, Count]) -> Counts:
    counts = (main, *threads.values())
    total = Count(sum(it.notifications for it in counts), sum(it.highlights for it in counts))
    return Counts(total, main, dict(threads))
