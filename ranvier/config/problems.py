"""What is wrong with a configuration, said so that an administrator can mend all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing to tell: an error stops the server, a warning and a note do not.

    ``line`` counts from 1 and is 0 where there is none; ``key`` is the dotted path (``listeners.0.port``).
    """

    severity: Severity
    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{self.key}: " if self.key else ""
        return f"{place}: {self.severity}: {key}{self.message}"


class ConfigError(Exception):
    """Say that the configuration cannot be used; ``problems`` has everything that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass
class Problems:
    """Collect problems while a configuration is read."""

    found: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, file: str, line: int, key: str, message: str) -> None:
        """Note one problem."""
        self.found.append(Problem(severity, file, line, key, message))

    def sorted(self) -> tuple[Problem, ...]:
        """Give everything that was found, each once, in the order of the files' lines."""
        return tuple(sorted(dict.fromkeys(self.found), key=lambda problem: (problem.file, problem.line)))

    def raise_errors(self) -> None:
        """Raise ``ConfigError`` with everything that was found if there is any error in it."""
        if any(problem.severity == "error" for problem in self.found):
            raise ConfigError(self.sorted())
