"""How far the log has come and who commits to it, told among the workers of one machine in shared memory.

A worker writes the position of each commit into its own place before anybody is told of the commit, and that
of one which it found in the log, since whoever made that may have died before. Who asks another worker later
therefore finds it there: that worker waits, a millisecond mostly, until its own tail has come so far, and
nobody ever sees less than what was answered anywhere before. It costs no message.

Commits exclude each other in the database. A worker whose batch waited there could not add what comes
meanwhile, so workers stand in line here, with open batches: fewer commits carry more. This is a courtesy;
what a dead or frozen worker left counts for nothing after ``_STALE_NS``.

Each worker says here, too, until when somebody waits at it for what others commit, and whether it holds back
telling of something (``cluster.attention``).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

PLACES: Final = 64
_WIDTH: Final = 8
_NAME: Final = "heads"
_STALE_NS: Final = 20_000_000
_ATTENDS_NS: Final = 2_000_000_000
_SAID_ANEW_NS: Final = _ATTENDS_NS * 3 // 4
_NEARLY_OVER_NS: Final = _ATTENDS_NS // 20
_HOLDS_NS: Final = 1_000_000_000
# Five numbers for each place, all but the first times in monotonic ns or 0: a head, since when it commits or
# waits to, and until when somebody waits there or something is held back. Workers of an older release know
# the first three.
_COMMITS: Final = PLACES
_WAITS: Final = 2 * PLACES
_ATTENDS: Final = 3 * PLACES
_HOLDS: Final = 4 * PLACES
_HEADS_END: Final = _COMMITS * _WIDTH
_LINE_END: Final = _ATTENDS * _WIDTH
_ATTENTION_END: Final = _HOLDS * _WIDTH
_SIZE: Final = 5 * PLACES * _WIDTH
_TIMES: Final = (_COMMITS, _WAITS, _ATTENDS, _HOLDS)


class HeadBoard:
    """Hold one place of the file ``heads`` in the folder that the workers of a machine share."""

    def __init__(self, folder: Path) -> None:
        """Take a place. Raises ``OSError`` when the folder cannot be used or all places are taken."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(folder / _NAME, flags, 0o660)
        try:
            if os.fstat(self._file).st_size < _SIZE:
                os.ftruncate(self._file, _SIZE)
            self._memory = mmap.mmap(self._file, _SIZE)
            self._places = memoryview(self._memory).cast("Q")
            self._read, self._newest = b"", 0  # the heads that were read last
            self._attention, self._attended_until = b"", 0  # and who attends
            self._own = self._take_place()
            self._forget_times(self._own)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def identity(self) -> str:
        """Name this memory: workers that give the same name share it."""
        status = os.fstat(self._file)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{status.st_dev}:{status.st_ino}"

    async def begin(self, pos: int, read_head: Callable[[], Awaitable[int]]) -> None:
        """Begin at ``pos``, and set back to the head of the log what is told of another database.

        What the dead left of this one is not newer than a head that is read once they are known to be dead.
        Their times may be of before the machine was started, and would seem to be of the future.
        """
        self._places[self._own] = pos
        left = {place: self._places[place] for place in range(PLACES) if self._is_left(place)}
        for place in left:
            self._forget_times(place)
        head = await read_head()
        for place, told in left.items():
            if told > head and self._places[place] == told and self._is_left(place):
                self._places[place] = head

    def note(self, pos: int) -> None:
        """Tell of a commit of this worker's, or of one that it found in the log."""
        self._places[self._own] = max(self._places[self._own], pos)

    def newest(self) -> int:
        """Give the newest position that any worker of this machine has told."""
        heads = self._memory[:_HEADS_END]
        if heads != self._read:  # asked for several times with each request, and mostly as it was
            self._read, self._newest = heads, max(memoryview(heads).cast("Q"))
        return self._newest

    # -- standing in line ------------------------------------------------------------------------------

    def may_commit(self) -> bool:
        """Tell whether it is this worker's turn to commit; if not it is in the line from now on."""
        if not self._memory[_HEADS_END:_LINE_END].strip(b"\0"):
            return True  # the usual case, found out in C
        places, now = self._places, time.monotonic_ns()
        own = places[_WAITS + self._own] or now
        if not any(now - _STALE_NS < since for since in places[_COMMITS:_WAITS] if since) and not any(
            now - _STALE_NS < since < own for since in places[_WAITS:_ATTENDS] if since
        ):
            return True
        places[_WAITS + self._own] = own
        return False

    def begin_commit(self) -> None:
        """Leave the line and commit."""
        self._places[_COMMITS + self._own] = time.monotonic_ns()
        self._places[_WAITS + self._own] = 0

    def end_commit(self) -> None:
        """Let the next one commit."""
        self._places[_COMMITS + self._own] = 0

    # -- attention -------------------------------------------------------------------------------------

    def attend(self) -> bool:
        """Say that somebody waits here, for two seconds.

        True if others did not know, and one of them holds back something or is about to; see ``hold``.
        """
        places, now = self._places, time.monotonic_ns()
        left_ns = places[_ATTENDS + self._own] - now
        if left_ns < _SAID_ANEW_NS:
            places[_ATTENDS + self._own] = now + _ATTENDS_NS
        return left_ns < _NEARLY_OVER_NS and any(
            until > now for place, until in enumerate(places[_HOLDS:]) if place != self._own
        )

    def hold(self) -> bool:
        """Say that something is held back here; False if somebody waits at another worker of this machine.

        It looks once more when it has said so: whoever began to wait in between may not have known.
        """
        if self._is_attended():
            return False
        self._places[_HOLDS + self._own] = time.monotonic_ns() + _HOLDS_NS
        return not self._is_attended()

    def release(self) -> None:
        """Say that nothing is held back here."""
        self._places[_HOLDS + self._own] = 0

    def _is_attended(self) -> bool:
        attention = self._memory[_LINE_END:_ATTENTION_END]
        if attention != self._attention:
            untils = list(memoryview(attention).cast("Q"))
            untils[self._own] = 0
            self._attention, self._attended_until = attention, max(untils)
        return self._attended_until > time.monotonic_ns()

    def close(self) -> None:
        """Give the place back."""
        self._forget_times(self._own)
        self._places.release()
        self._memory.close()
        os.close(self._file)

    def _forget_times(self, place: int) -> None:
        for of_place in _TIMES:
            self._places[of_place + place] = 0

    def _take_place(self) -> int:
        for place in range(PLACES):
            if self._lock(place):
                return place
        raise OSError(errno.EUSERS, f"{PLACES} workers of this machine share a folder already")

    def _is_left(self, place: int) -> bool:
        """Tell whether nobody holds a place now; who takes it later sets it, too."""
        if place == self._own or not self._lock(place):
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
        return True

    def _lock(self, place: int) -> bool:
        # The kernel frees it when the process ends, however that happens.
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True
