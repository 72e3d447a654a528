"""The running machine: what programs and services it has, and how they are."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import ranvier
from ranvier.deploy.actions import COMMAND_TIMEOUT_S, DeployError, Run, command_path
from ranvier.deploy.settings import Settings
from ranvier.deploy.target import Target

AS_POSTGRES: Final = ("runuser", "-u", "postgres", "--")
_RUNNING: Final = ("active", "reloading", "refreshing")
_NOBODY: Final = 65534


@dataclass(frozen=True)
class System:
    """A machine that systemd runs. ``path`` says where its programs are, as ``$PATH`` does.

    ``has_ipv6`` tells whether its kernel knows IPv6, without which nginx refuses to listen there.
    """

    path: str = field(default_factory=command_path)
    has_ipv6: bool = field(default_factory=Path("/proc/net/if_inet6").exists)

    def has_nginx(self) -> bool:
        """Tell whether nginx is installed, and started by systemd."""
        return shutil.which("nginx", path=self.path) is not None and self.has_service("nginx.service")

    def uses_nginx(self) -> bool:
        """Tell whether nginx runs or is started at boot; otherwise something else may have its ports."""
        enabled = self.says(["systemctl", "is-enabled", "nginx.service"]) == "enabled"
        return enabled or not self.not_running(["nginx.service"])

    def has_service(self, name: str) -> bool:
        """Tell whether systemd knows a service."""
        return self.says(["systemctl", "show", "--property=LoadState", "--value", name]) == "loaded"

    def not_running(self, units: Sequence[str]) -> list[str]:
        """Give those of some units that do not run: they are stopped, have failed or only begin to."""
        states = self.says(["systemctl", "is-active", *units]).splitlines()
        pairs = itertools.zip_longest(units, states[: len(units)])
        return [unit for unit, state in pairs if state not in _RUNNING]

    def says(self, argv: Sequence[str]) -> str:
        """Run a command that only looks, and give what it says; nothing if it cannot be run."""
        try:
            done = subprocess.run(
                argv,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_S,
                cwd="/",
                env={**os.environ, "PATH": self.path},
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()

    def run(self, argv: Sequence[str], why: str) -> Run:
        """Give the step that runs a command."""
        return Run(argv, why, self.path)

    def check_program(self, target: Target, settings: Settings) -> None:
        """See whether the server's user can run its program. Raises DeployError."""
        if os.geteuid() != 0:
            return  # a dry run; nobody else can try it as another user
        program, user = settings.program, settings.user
        uid, gid = _numbers(target, user)
        try:
            done = subprocess.run(
                [program, "--version"],
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_S,
                cwd="/",
                env={"PATH": self.path},
                stdin=subprocess.DEVNULL,
                user=uid,
                group=gid,
                extra_groups=os.getgrouplist(user, gid),  # as systemd gives them
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        else:
            if done.returncode == 0:
                return
            problem = done.stderr.strip() or f"it ended with status {done.returncode}"
        raise DeployError(
            f"the user {user} cannot run {program}: {problem}\n"
            "Install it where everybody may look, such as below /opt and not below /root, or give --program"
        )


def _numbers(target: Target, user: str) -> tuple[int, int]:
    """Give the user and the group of its name, as which systemd runs workers. Raises DeployError."""
    if not target.has_user(user):
        return _NOBODY, _NOBODY
    try:
        return target.uid(user), target.gid(user)
    except LookupError as error:
        raise DeployError(
            f"there is no group {user}, as which workers run beside the user {user}: make it with "
            f"`groupadd {user}`, or give another --user"
        ) from error


def own_program() -> Path | None:
    """Give the command `ranvier` that runs now; None if that has no file."""
    found = shutil.which(sys.argv[0]) if Path(sys.argv[0]).name == "ranvier" else None
    beside = Path(sys.executable).with_name("ranvier")
    return Path(found).resolve() if found else beside if beside.exists() else None


def other_program(settings: Settings) -> Path | None:
    """Give the command that runs now if workers run one of another place, such as an older release."""
    own = own_program()
    return own if own is not None and own.resolve() != settings.program.resolve() else None


def own_release() -> str:
    """Give what tells this release from another one, and from one of the same version with other files."""
    files = hashlib.sha256()
    for path in sorted(Path(ranvier.__file__).parent.rglob("*.*")):
        if path.is_file() and path.suffix != ".pyc":
            files.update(path.read_bytes())
    return f"{ranvier.__version__} {files.hexdigest()[:16]}"


def system_of(target: Target) -> System | None:
    """Give the machine if the target is one that systemd runs (sd_booted(3)), and not a folder."""
    return System() if target.is_machine and Path("/run/systemd/system").is_dir() else None
