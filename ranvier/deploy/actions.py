"""What a deployment consists of: files, folders and commands, each of which can be shown first."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ranvier.deploy.target import Rights, Target

COMMAND_TIMEOUT_S: Final = 300


class DeployError(Exception):
    """Say why a deployment cannot go on; the message is for the administrator."""


class Action(Protocol):
    """One step."""

    def summary(self) -> str:
        """Say in one line what is done."""

    def detail(self) -> str:
        """Give what a dry run shows besides: a file's content or its differences; often nothing."""

    def apply(self, target: Target) -> None:
        """Do it. Raises ``OSError``, ``LookupError``, DeployError."""


@dataclass(frozen=True)
class MakeFolder:
    """Make a folder, or give one that is there its rights."""

    path: Path
    rights: Rights
    before: Rights | None

    def summary(self) -> str:
        """Say in one line what is done."""
        if self.before is None:
            return f"make the folder {self.path} ({self.rights})"
        return f"change the folder {self.path} from {self.before} to {self.rights}"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Make or change it."""
        if self.before is None:
            target.real(self.path).mkdir(mode=0o700)
        target.set_rights(self.path, self.rights)


@dataclass(frozen=True)
class SetRights:
    """Give a file its rights and leave its content."""

    path: Path
    rights: Rights
    before: Rights

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"change {self.path} from {self.before} to {self.rights}"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Change it."""
        target.set_rights(self.path, self.rights)


@dataclass(frozen=True)
class PutFile:
    """Write a file. ``copy_to`` keeps what a person had written into it, with the rights that it had."""

    path: Path
    content: str
    rights: Rights
    before: str | None
    copy_to: Path | None = None
    copy_rights: Rights | None = None

    def summary(self) -> str:
        """Say in one line what is done."""
        if self.before is None:
            return f"write {self.path} ({self.rights})"
        if self.copy_to is None:
            return f"update {self.path}"
        return f"REPLACE {self.path}, which others wrote or edited; a copy is kept as {self.copy_to}"

    def detail(self) -> str:
        """Give the file, or how it changes."""
        if self.before is None:
            return "".join(f"  | {line}\n" for line in self.content.splitlines())
        before, after = self.before.splitlines(), self.content.splitlines()
        lines = difflib.unified_diff(before, after, "as it is", "as it will be", lineterm="", n=2)
        return "".join(f"  | {line}\n" for line in lines)

    def apply(self, target: Target) -> None:
        """Write it."""
        if self.copy_to is not None and self.before is not None:
            target.write(self.copy_to, self.before, self.copy_rights or self.rights)
        target.write(self.path, self.content, self.rights)


@dataclass(frozen=True)
class RemoveFile:
    """Take a file away that nobody needs any more."""

    path: Path
    why: str

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"remove {self.path}: {self.why}"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Remove it."""
        target.real(self.path).unlink()


@dataclass(frozen=True)
class MoveFile:
    """Give a file another name, under which nobody reads it."""

    path: Path
    to: Path
    why: str

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"move {self.path} to {self.to}: {self.why}"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Move it."""
        target.real(self.path).rename(target.real(self.to))


@dataclass(frozen=True)
class PutSecret:
    """Write a new secret; what it is, nobody is shown."""

    path: Path
    rights: Rights
    make: Callable[[], str]
    what: str

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"write {self.path} ({self.rights}): {self.what}"

    def detail(self) -> str:
        """Give nothing: it is not made yet, and it is a secret."""
        return ""

    def apply(self, target: Target) -> None:
        """Make and write it."""
        target.write(self.path, self.make(), self.rights)


@dataclass(frozen=True)
class Run:
    """Run a command. ``path`` says where programs are; None: where this process finds them."""

    argv: Sequence[str]
    why: str
    path: str | None = None
    timeout_s: float = COMMAND_TIMEOUT_S

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"run `{' '.join(self.argv)}`: {self.why}"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Run it and wait. Raises DeployError with what it said when it fails."""
        self.said()

    def said(self) -> str:
        """Run it and wait; give what it said beside its output. Raises DeployError as ``apply`` does."""
        try:
            done = subprocess.run(
                self.argv,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_s,
                env={**os.environ, "PATH": self.path or command_path()},
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeployError(f"`{' '.join(self.argv)}` cannot be run: {error}") from error
        except KeyboardInterrupt as error:
            raise DeployError(f"`{' '.join(self.argv)}` was interrupted") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"it ended with status {done.returncode}"
            raise DeployError(f"`{' '.join(self.argv)}` failed: {said}")
        return done.stderr


@dataclass(frozen=True)
class Tried:
    """Do a step that may fail after files were written; then ``undo`` makes ``what`` as it was before."""

    step: Action
    undo: Sequence[Action]
    what: str = "All files"

    def summary(self) -> str:
        """Say in one line what is done."""
        return self.step.summary()

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Do it. Raises DeployError when it fails, after everything is as it was."""
        try:
            self.step.apply(target)
        except DeployError as error:
            if not self.undo:
                raise
            try:
                for step in self.undo:
                    step.apply(target)
            except (DeployError, OSError, LookupError) as second:
                raise DeployError(f"{error}\nIt cannot be made as it was before: {second}") from error
            raise DeployError(f"{error}\n{self.what} are as they were before") from error


def command_path() -> str:
    """Give where programs are looked for: also where those for administrators are, after a plain ``su``."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
