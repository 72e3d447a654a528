"""How long a request spent in the database, for its log line."""

from __future__ import annotations

from contextvars import ContextVar


class DatabaseTimes:
    """Add up what the running request spends; requests do not see each other's time.

    A request's context holds one mutable cell, so that tasks that the request starts add to it as well.
    """

    def __init__(self) -> None:
        self._cell: ContextVar[list[float]] = ContextVar("database_time")

    def begin(self) -> None:
        """Start at zero for the running request."""
        self._cell.set([0.0])

    def spent_ms(self) -> float:
        """Give what the running request has spent so far, in milliseconds."""
        cell = self._cell.get(None)
        return cell[0] * 1000 if cell is not None else 0.0

    def add(self, seconds: float) -> None:
        """Add one use of the database. Outside of a request nobody counts it."""
        cell = self._cell.get(None)
        if cell is not None:
            cell[0] += seconds
