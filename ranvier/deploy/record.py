"""What ``deploy`` remembers: its settings, and each file as it was written, to know a person's edit by.

It lies where only root writes, since the next run believes it and does what it says as root.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ranvier.deploy.actions import DeployError
from ranvier.deploy.settings import Settings, check_settings, from_plain, to_plain
from ranvier.deploy.target import Target, fingerprint

PATH: Final = Path("/etc/ranvier/deploy.json")
FORMER_PATH: Final = Path("/var/lib/ranvier/deploy.json")
"""Where the first release kept it; the next run takes it over."""


@dataclass(frozen=True)
class Record:
    """The last run.

    ``settings`` and ``files`` are those of the last run that came to its end: ``files`` has the fingerprint
    of each file by its path. ``begun`` has those of files that later runs meant to write, and of which
    nobody knows whether they are written or in use. ``version`` is the release (``own_release``)
    that workers run since they were last restarted as that run said.
    """

    settings: Settings | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    begun: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: str = ""

    def wrote(self, path: Path, text: str) -> bool:
        """Tell whether a file's text is one of those that were written there, and not a person's."""
        mark = fingerprint(text)
        return mark == self.files.get(str(path)) or mark in self.begun.get(str(path), ())

    def uses(self, path: Path, text: str) -> bool:
        """Tell whether this text was there when the last run came to its end."""
        return fingerprint(text) == self.files.get(str(path))

    def beginning(self, written: Mapping[str, str]) -> Record:
        """Give what is to be remembered before files are written with these fingerprints."""
        begun = {path: set(marks) for path, marks in self.begun.items()}
        for path, mark in written.items():
            if mark != self.files.get(path):
                begun.setdefault(path, set()).add(mark)
        return replace(self, begun={path: tuple(sorted(marks)) for path, marks in begun.items()})

    def ended(
        self,
        settings: Settings,
        written: Mapping[str, str],
        version: str,
        *,
        waiting: Container[Path] = (),
        gone: Container[Path] = (),
    ) -> Record:
        """Give what is to be remembered at the end; ``waiting`` are files that nothing uses yet."""
        used = {path: mark for path, mark in written.items() if Path(path) not in waiting}
        files = {path: mark for path, mark in {**self.files, **used}.items() if Path(path) not in gone}
        begun = self.beginning(written).begun
        kept = {path: marks for path, marks in begun.items() if Path(path) in waiting}
        return Record(settings, files, kept, version)

    def encode(self) -> str:
        """Give the file's text."""
        settings = to_plain(self.settings) if self.settings is not None else None
        values: dict[str, Any] = {"settings": settings, "files": dict(self.files), "version": self.version}
        if self.begun:
            values["begun"] = {path: list(marks) for path, marks in self.begun.items()}
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


def read_record(target: Target) -> Record:
    """Read the record; an empty one if there was no run.

    Raises DeployError for one that cannot be read, or that others than root may have written; ``OSError``.
    """
    path, text = PATH, _read_safely(target, PATH)
    if text is None:
        path, text = FORMER_PATH, _read_safely(target, FORMER_PATH)
    if text is None:
        return Record()
    try:
        return _decode(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"{path} cannot be used ({error}); move it away, and give all options again"
        ) from error


def _decode(values: Any) -> Record:
    """Read what ``Record.encode`` gave. Raises what reading values of other kinds raises."""
    settings = None
    if values["settings"] is not None:
        settings = from_plain(dict(values["settings"]))
        check_settings(settings)
    files = {str(path): str(mark) for path, mark in values["files"].items()}
    begun = {str(path): tuple(map(str, marks)) for path, marks in values.get("begun", {}).items()}
    return Record(settings, files, begun, str(values.get("version", "")))


def _read_safely(target: Target, path: Path) -> str | None:
    """Give a file's text if nobody but root, or whoever runs this, can have written it.

    Its folder may be somebody else's: they can take the file away, but not make one that belongs to root.
    """
    advice = "see what it says, move it away, and give all options again"
    try:
        found = target.read_exposed(path)
    except OSError as error:
        if error.errno is None:  # it is there and no file of its own
            raise DeployError(f"{error}, and is not trusted; {advice}") from error
        raise
    if found is None:
        return None
    text, rights = found
    if rights.owner not in (target.user_name(0), target.user_name(os.geteuid())):
        raise DeployError(f"{path} belongs to {rights.owner} and is not trusted; {advice}")
    if rights.mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DeployError(f"others than root may write {path}, so it is not trusted; {advice}")
    return text
