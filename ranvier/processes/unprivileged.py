"""Run a program as an unprivileged user: PostgreSQL refuses to run as root, and Redis has no need to."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFERRED_USERS = ("ranvier", "postgres", "nobody")
"""Who runs them when Ranvier is started by root: the first that exists."""

CAPABILITIES = ("dac_read_search", "dac_override")
"""What lets the user through folders that are closed to it, the weaker one first."""

PROBE_TIMEOUT_S = 10


class PrivilegeError(Exception):
    """Say that no way was found to run a program as an unprivileged user."""


@dataclass(frozen=True)
class RunAs:
    """How a program is run: the user that its files belong to, and what stands before the command."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Give the whole command line for ``argv``."""
        return [*self.prefix, *(str(word) for word in argv)]

    def own(self, path: Path) -> None:
        """Give ``path`` to the user, if it is not its own yet."""
        if path.stat().st_uid != self.uid:
            os.chown(path, self.uid, self.gid)

    def own_tree(self, root: Path) -> None:
        """Give ``root`` and everything in it to the user (links themselves, not what they point to)."""
        os.chown(root, self.uid, self.gid)
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                os.chown(Path(folder, name), self.uid, self.gid, follow_symlinks=False)


def choose_run_as(owner_uid: int | None, paths: Sequence[Path], program: str = "PostgreSQL") -> RunAs:
    """Choose the user, and the way to become it, so that it reaches every one of ``paths``.

    ``owner_uid`` is whom the existing files belong to. Whoever is not root runs programs as themselves.
    Raises ``PrivilegeError``.
    """
    if os.geteuid() != 0:
        return RunAs(os.geteuid(), os.getegid())
    user = _unprivileged_user(owner_uid, program)
    tool = shutil.which("setpriv")
    if tool is None:
        raise PrivilegeError(
            f"{program} does not run as root, and the program setpriv (util-linux), which runs it as another "
            "user, was not found; install util-linux or start Ranvier as an ordinary user"
        )
    for flags in ((), *(_capability_flags(name) for name in CAPABILITIES)):
        run_as = RunAs(user.pw_uid, user.pw_gid, (*_setpriv(tool, user), *flags))
        if all(_reaches(run_as, path) for path in paths):
            return run_as
    raise PrivilegeError(
        f"{program} does not run as root, and the user {user.pw_name} cannot reach "
        f"{' and '.join(map(str, paths))}; put them where every user may enter, "
        "or start Ranvier as an ordinary user"
    )


def _unprivileged_user(owner_uid: int | None, program: str) -> pwd.struct_passwd:
    if owner_uid:
        try:
            return pwd.getpwuid(owner_uid)
        except KeyError as error:
            raise PrivilegeError(
                f"the data of {program} belong to user number {owner_uid}, which does not exist here"
            ) from error
    for name in PREFERRED_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PrivilegeError(f"none of the users {', '.join(PREFERRED_USERS)} exists on this machine")


def _setpriv(tool: str, user: pwd.struct_passwd) -> tuple[str, ...]:
    return (tool, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs")


def _capability_flags(name: str) -> tuple[str, ...]:
    # access(2), by which PostgreSQL looks for its own program, drops the capabilities of whoever is not
    # root unless the "setuid fixup" is off.
    return (
        "--securebits=+no_setuid_fixup",
        f"--bounding-set=-all,+{name}",
        f"--inh-caps=-all,+{name}",
        f"--ambient-caps=-all,+{name}",
    )


def _reaches(run_as: RunAs, path: Path) -> bool:
    argv: list[str | Path] = ["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", path]
    done = subprocess.run(
        run_as.command(argv), check=False, cwd="/", capture_output=True, timeout=PROBE_TIMEOUT_S
    )
    return done.returncode == 0
