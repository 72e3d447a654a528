"""Where log lines go and how they look.

The lines of requests are most of the log. ``logging`` takes as long for one as the server for a small answer,
and so does a system call for each: they come ready made and are written some at a time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import TextIOBase
from typing import TextIO

_DATE = "%Y-%m-%d %H:%M:%S"
_FLUSH_AFTER_S = 0.2
_MOST_KEPT = 64 * 1024


class LogOutput(TextIOBase):
    """Write log lines to a stream; those that can wait are written together, before any that cannot.

    They wait only while an event loop runs (``gathering``). ``process`` is named in each line.
    Lines may come from any thread, those that wait
    from the event loop's alone.
    """

    def __init__(self, stream: TextIO, process: str = "") -> None:
        self._stream = stream
        self._process = f"[{process}] " if process else ""
        self._lock = threading.RLock()
        self._kept: list[str] = []
        self._kept_size = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._date = ""

    @asynccontextmanager
    async def gathering(self) -> AsyncIterator[None]:
        """Let lines wait for a moment while the running event loop goes on; at the end all are written."""
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
            self.flush()

    def write(self, text: str, /) -> int:
        """Write a text now, behind what waits."""
        with self._lock:
            self._kept.append(text)
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            kept, self._kept, self._kept_size = self._kept, [], 0
            if kept:
                self._stream.write("".join(kept))
                self._stream.flush()

    def line_writer(self, name: str) -> Callable[[int, str], None]:
        """Make what writes lines in the name of a logger; below WARNING they may wait."""

        def write_line(level: int, line: str) -> None:
            self._keep(f"{self._now()} {logging.getLevelName(level):<7} {self._process}{name}: {line}\n")
            if level >= logging.WARNING or self._loop is None or self._kept_size > _MOST_KEPT:
                self.flush()
            elif self._timer is None:
                self._timer = self._loop.call_later(_FLUSH_AFTER_S, self._flush_in_time)

        return write_line

    def _keep(self, line: str) -> None:
        with self._lock:
            self._kept.append(line)
            self._kept_size += len(line)

    def _flush_in_time(self) -> None:
        self._timer = None
        self.flush()

    def _now(self) -> str:
        """Give the time as ``logging`` writes it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._date = second, time.strftime(_DATE, time.localtime(second))
        return f"{self._date},{int((now - second) * 1000):03d}"


def set_up_logging(level: str, process: str = "") -> LogOutput:
    """Write log lines of ``level`` and above to standard error, one line each, with the name of a process."""
    output = LogOutput(sys.stderr, process)
    named = f"[{process}] ".replace("%", "%%") if process else ""
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {named}%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # asyncio speaks up only when something is wrong.
    logging.getLogger("asyncio").setLevel(max(logging.getLevelName(level), logging.WARNING))
    return output
