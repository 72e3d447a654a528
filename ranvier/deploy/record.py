"""What ``deploy`` remembers: its settings, and each file as it was written, to know a person's edit by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ranvier.deploy.actions import DeployError
from ranvier.deploy.settings import Settings, from_plain, to_plain
from ranvier.deploy.target import Target

PATH: Final = Path("/var/lib/ranvier/deploy.json")


@dataclass(frozen=True)
class Record:
    """The last run. ``files`` has the fingerprint of each file by its path."""

    settings: Settings | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> str:
        """Give the file's text."""
        settings = to_plain(self.settings) if self.settings is not None else None
        return json.dumps({"settings": settings, "files": dict(self.files)}, indent=1, sort_keys=True) + "\n"


def read_record(target: Target) -> Record:
    """Read the record; an empty one if there was no run. Raises DeployError for one that cannot be read."""
    text = target.read(PATH)
    if text is None:
        return Record()
    try:
        values = json.loads(text)
        files = {str(path): str(mark) for path, mark in values["files"].items()}
        return Record(from_plain(dict(values["settings"])), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(
            f"{PATH} cannot be read ({error}); move it away, and give all options again"
        ) from error
