"""The commands that put the files of a deployment to use, on a machine that runs systemd."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ranvier.deploy.actions import COMMAND_TIMEOUT_S, Action, Run
from ranvier.deploy.plan import UNITS, Plan
from ranvier.deploy.settings import Settings
from ranvier.deploy.system_files import service_of

_AS_POSTGRES: Final = ("runuser", "-u", "postgres", "--")
_ENCODING: Final = ("--encoding=UTF8", "--locale=C", "--template=template0")


def commands(settings: Settings, plan: Plan, removed: Sequence[str], *, start: bool) -> list[Action]:
    """Give the commands that are needed after the plan's files are there."""
    found: list[Action] = []
    units = {path for path in plan.changed if UNITS in path.parents}
    if units:
        found.append(Run(["systemctl", "daemon-reload"], "systemd reads its units again"))
    found += _database(settings)
    if plan.restart_redis:
        found.append(Run(["systemctl", "restart", settings.redis_service], "Redis moves to its socket"))
    if plan.reload_nginx:
        found.append(Run(["nginx", "-t"], "see whether nginx takes its configuration"))
        found.append(Run(["systemctl", "reload", "nginx.service"], "nginx uses it"))
    for name in removed:
        argv = ["systemctl", "disable", "--now", service_of(name)]
        found.append(Run(argv, f"the worker {name} is no longer wanted"))
    if not _says(["systemctl", "is-enabled", "ranvier.target"], "enabled"):
        found.append(Run(["systemctl", "enable", "ranvier.target"], "Ranvier is started at boot"))
    if start and (units or not _says(["systemctl", "is-active", "ranvier.target"], "active")):
        found.append(Run(["systemctl", "start", "ranvier.target"], "all workers that do not run are started"))
    return found


def hints(settings: Settings, plan: Plan) -> list[str]:
    """Give what the administrator may want to do after this."""
    found = []
    services = {UNITS / "ranvier.service", UNITS / "ranvier-worker@.service"}
    configuration = {path for path in plan.changed if settings.config_dir in path.parents}
    if (services | configuration) & plan.changed:
        found.append("workers that run already take their new files with `systemctl restart ranvier.target`")
    if settings.certificate is None:
        found.append(f"nginx has no certificate for {settings.public_name}: give --certificate and its key")
    return found


def _database(settings: Settings) -> list[Action]:
    """Make the server's role and its database, unless they are there or PostgreSQL is elsewhere."""
    if not _runs([*_AS_POSTGRES, "psql", "-tAc", "SELECT 1"]):
        return []
    found: list[Action] = []
    if not _has(f"SELECT 1 FROM pg_roles WHERE rolname = '{settings.user}'"):
        found.append(Run([*_AS_POSTGRES, "createuser", settings.user], "the server's role in PostgreSQL"))
    if not _has("SELECT 1 FROM pg_database WHERE datname = 'ranvier'"):
        argv = [*_AS_POSTGRES, "createdb", f"--owner={settings.user}", *_ENCODING, "ranvier"]
        found.append(Run(argv, "the server's database"))
    return found


def _has(sql: str) -> bool:
    return _says([*_AS_POSTGRES, "psql", "-tAc", sql], "1")


def _says(argv: Sequence[str], expected: str) -> bool:
    try:
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == expected


def _runs(argv: Sequence[str]) -> bool:
    return _says(argv, "1")


def systemd_runs() -> bool:
    """Tell whether systemd is this machine's service manager (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()
