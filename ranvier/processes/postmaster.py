"""Read what a running PostgreSQL says of itself in its data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ranvier.processes.embedded import works_in


@dataclass(frozen=True)
class PostmasterStatus:
    """What PostgreSQL wrote into ``postmaster.pid``: its process, its socket, and whether it is ready.

    Source: PostgreSQL manual, "Database File Layout" (``postmaster.pid``).
    """

    pid: int
    socket_folder: Path | None
    ready: bool

    @classmethod
    def read(cls, cluster: Path) -> PostmasterStatus | None:
        """Read it, or give ``None`` when there is none or its first line is not yet written."""
        try:
            lines = (cluster / "postmaster.pid").read_text().split("\n")
            pid = int(lines[0])
        except (FileNotFoundError, ValueError):
            return None
        folder = Path(lines[4]) if len(lines) > 4 and lines[4] else None
        return cls(pid, folder, len(lines) > 7 and lines[7].strip() == "ready")


def is_postmaster(pid: int, cluster: Path) -> bool:
    """Tell whether the process is alive and is this cluster's: PostgreSQL works inside its data folder."""
    return works_in(pid, cluster)
