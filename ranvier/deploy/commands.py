"""The commands that put the files of a deployment to use, on a machine that runs systemd."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ranvier.deploy import config_files
from ranvier.deploy.actions import COMMAND_TIMEOUT_S, Action, DeployError, Run, Tried
from ranvier.deploy.plan import UNITS, Plan
from ranvier.deploy.record import Record
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.system import AS_POSTGRES, System, other_program, own_release
from ranvier.deploy.system_files import service_of
from ranvier.deploy.target import Target

_ENCODING: Final = ("--encoding=UTF8", "--locale=C", "--template=template0")
_CONNECTIONS: Final = (
    "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
)
_START_TIMEOUT_S: Final = 20 * 60  # more than the units give a start that brings the schema up to date
_SHOWN: Final = 3


@dataclass(frozen=True)
class CheckNginx:
    """See whether nginx takes its configuration, and no other of its sites has the host."""

    run: Run
    host: str

    def summary(self) -> str:
        """Say in one line what is done."""
        return self.run.summary()

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Run it and wait. Raises DeployError when nginx refuses its files, or would use one of two sites."""
        if has_two_sites(self.run.said(), self.host):
            raise DeployError(
                f"another site of nginx has the name {self.host} already, and nginx would use one of the two "
                f"alone: disable that one (`grep -R {self.host} /etc/nginx` finds it), then run this again; "
                "--no-start leaves nginx as it is"
            )


@dataclass(frozen=True)
class StartServices:
    """Start services and see whether they run."""

    system: System
    services: Sequence[str]

    def summary(self) -> str:
        """Say in one line what is done."""
        return f"{self._start().summary()}, and each is asked whether it runs"

    def detail(self) -> str:
        """Give nothing: the line says it all."""
        return ""

    def apply(self, target: Target) -> None:
        """Start them. Raises DeployError with the status of those that do not run then."""
        failed: DeployError | None = None
        try:
            self._start().apply(target)
        except DeployError as error:
            failed = error  # what systemd says of each service tells more
        away = self.system.not_running(self.services)
        if away:
            status = ["systemctl", "status", "--no-pager", "--full", "--lines=15"]
            said = "\n\n".join(self.system.says([*status, name]) for name in away[:_SHOWN])
            raise DeployError(f"{', '.join(away)}: not running\n\n{said}") from failed
        if failed is not None:
            raise failed

    def _start(self) -> Run:
        argv = ["systemctl", "start", "ranvier.target", *self.services]
        return Run(argv, "all workers that do not run are started", self.system.path, _START_TIMEOUT_S)


def commands(system: System, settings: Settings, plan: Plan, *, start: bool) -> list[Action]:
    """Give the commands that are needed after the plan's files are there, but for those that start workers.

    Unless workers are to ``start``, those that do not do so at boot yet are not made to.
    What may refuse a file comes first. Whatever fails before Redis has restarted undoes all files.
    """
    reload_units = system.run(["systemctl", "daemon-reload"], "systemd reads its units again")
    files = list(plan.undo.values())
    undo: list[Action] = [*files, reload_units] if files and _units(plan) else files
    found: list[Action] = []
    if plan.reload_nginx:
        test = system.run(["nginx", "-t"], "see whether nginx takes its configuration")
        found.append(Tried(CheckNginx(test, settings.public_name), undo))
    if _units(plan):
        found.append(Tried(reload_units, undo))
    found += [Tried(run, undo) for run in _database(system, settings, plan)]
    if plan.restart_redis:
        restart = system.run(["systemctl", "restart", settings.redis_service], "Redis moves to its socket")
        found.append(Tried(restart, [*undo, restart] if undo else []))
    if plan.removed:
        argv = ["systemctl", "disable", "--now", *(service_of(name) for name in plan.removed)]
        why = f"no longer wanted: {', '.join(plan.removed)}"
        found.append(Run(argv, why, system.path, plan.stop_s + COMMAND_TIMEOUT_S))
    if start and system.says(["systemctl", "is-enabled", "ranvier.target"]) != "enabled":
        found.append(system.run(["systemctl", "enable", "ranvier.target"], "Ranvier is started at boot"))
    return found


def has_two_sites(said: str, host: str) -> bool:
    """Tell whether ``nginx -t``, which only warns of it, said that two sites have one name."""
    return f'conflicting server name "{host.lower()}"' in said


def starting(system: System, settings: Settings, plan: Plan) -> list[Action]:
    """Give what starts the workers that do not run, if there are any; without them nginx keeps its files."""
    services = [service_of(name) for name in settings.names]
    if _units(plan) or system.not_running(["ranvier.target", *services]):
        files = (settings.nginx_upstream, settings.nginx_site)
        undo = [plan.undo[path] for path in files if path in plan.undo]
        return [Tried(StartServices(system, services), undo, "nginx's files")]
    return []


def serving(system: System, plan: Plan) -> list[Action]:
    """Give what lets nginx use its files, and remembers that it does; workers run by then."""
    if not plan.reload_nginx:
        return []
    argv = ["systemctl", "reload-or-restart", "nginx.service"]
    return [system.run(argv, "nginx uses it"), *plan.served]


def hints(before: Record, settings: Settings, plan: Plan, system: System | None) -> list[str]:
    """Give what the administrator may want to do after this; ``system`` is the machine, if it is one."""
    found = list(_restarts(before, settings, plan, system))
    host = settings.server_name.partition(":")[0]
    if plan.actions and settings.public_name != host:
        found.append(
            f"who knows {settings.server_name} alone asks https://{host}/.well-known/matrix/client: "
            f"have that host give what {settings.public_name} gives there"
        )
    if settings.certificate is None and str(settings.nginx_site) in plan.wanted:
        found.append(f"nginx has no certificate for {settings.public_name}: give --certificate and its key")
    return found


def _restarts(before: Record, settings: Settings, plan: Plan, system: System | None) -> Iterator[str]:
    """Say which workers that were there before go on with what they have read, or with another program."""
    if before.settings is None:
        return
    own = other_program(settings) if system is not None else None
    if own is not None and settings.program == before.settings.program:
        yield f"workers run {settings.program}, and this is {own}: for that, give --program {own}"
    names = [name for name in settings.names if name in before.settings.names]
    if system is not None:
        stopped = system.not_running([service_of(name) for name in names])
        names = [name for name in names if service_of(name) not in stopped]
    why = "this is another release than that of the last run, which workers run until they are restarted"
    if before.version == own_release() or own is not None:
        names = [name for name in names if _reads(settings, name, plan.changed)]
        why = "workers that run already take their new files when they are restarted"
    if names:
        services = ", ".join(service_of(name) for name in names)
        yield f"{why}: `systemctl restart NAME` with one after the other of {services}"


def _reads(settings: Settings, name: str, files: Collection[Path]) -> bool:
    """Tell whether one of some files is what a worker reads, or its unit."""
    unit = UNITS / ("ranvier.service" if name == MAIN else "ranvier-worker@.service")
    read = {unit, *settings.config_paths(name)}
    return any(path in read or path.parent in read for path in files)


def _units(plan: Plan) -> bool:
    return any(UNITS in path.parents for path in plan.changed)


def _database(system: System, settings: Settings, plan: Plan) -> list[Run]:
    """Make the server's role and its database, unless they are there or PostgreSQL is elsewhere."""
    if not _has(system, "SELECT 1"):
        path = settings.conf_d / "database.yaml"
        if plan.wants(path, config_files.database_yaml(settings)):
            plan.notes.append(
                "PostgreSQL does not answer on this machine, and no worker starts without it: install and "
                f"start it, then run this again; if it is elsewhere, say so in {path}"
            )
        return []
    _compare_connections(system, settings, plan)
    found: list[Run] = []
    if not _has(system, f"SELECT 1 FROM pg_roles WHERE rolname = '{settings.user}'"):
        argv = [*AS_POSTGRES, "createuser", settings.user]
        found.append(system.run(argv, "the server's role in PostgreSQL"))
    if not _has(system, "SELECT 1 FROM pg_database WHERE datname = 'ranvier'"):
        argv = [*AS_POSTGRES, "createdb", f"--owner={settings.user}", *_ENCODING, "ranvier"]
        found.append(system.run(argv, "the server's database"))
    return found


def _compare_connections(system: System, settings: Settings, plan: Plan) -> None:
    """Tell when PostgreSQL may refuse workers that have opened all the connections that they may have."""
    there = _ask(system, _CONNECTIONS)
    if there.isdecimal() and plan.connections > int(there):
        plan.notes.append(
            f"the workers may want {plan.connections} connections, and PostgreSQL has {there} for them: "
            f"raise its max_connections, or lower cp_max in {settings.conf_d / 'database.yaml'}"
        )


def _has(system: System, sql: str) -> bool:
    return _ask(system, sql) == "1"


def _ask(system: System, sql: str) -> str:
    return system.says([*AS_POSTGRES, "psql", "-tAc", sql])
