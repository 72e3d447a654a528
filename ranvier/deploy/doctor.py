"""Find the server that is to be examined, and be who has to look at it."""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from ranvier.config.generate import CONFIG_NAME
from ranvier.deploy.actions import DeployError
from ranvier.deploy.examine import examine, examine_machine
from ranvier.deploy.findings import Finding, error, note
from ranvier.deploy.record import read_record
from ranvier.deploy.scene import Process, Scene, load_processes
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.system import system_of
from ranvier.deploy.target import Target
from ranvier.log.clock import SystemClock
from ranvier.processes.cluster_parts import key_prefix
from ranvier.processes.postgres import running_dsn
from ranvier.processes.service_user import acting_as, named_user, user_of
from ranvier.processes.start_error import StartError
from ranvier.processes.surroundings import HiddenError, find_redis


def examine_server(
    configs: Sequence[Path], workers: Sequence[Path], data_dir: Path | None
) -> Iterator[Finding]:
    """Examine the server that files or a data folder name, else the one that was deployed.

    Root looks at what is on the machine, and as the server's user at what the server uses.
    """
    target = Target()
    try:
        settings = None if configs or data_dir is not None else read_record(target).settings
    except (DeployError, OSError) as failed:
        yield error("deployment", f"it is not known what was deployed: {failed}", "run this as root")
        return
    data_dir = data_dir or (settings.data_dir if settings is not None else Path("data"))
    user = _user(settings, data_dir)
    with acting_as(user):
        processes, findings = load_processes(_sources(settings, configs, workers, data_dir))
        scene = None
        if processes:
            names_known = bool(workers or settings)
            scene, more = _scene(target, processes, settings, data_dir, names_known=names_known)
            findings += more
    yield from findings
    if scene is None:
        return
    yield from examine_machine(scene)

    async def look() -> list[Finding]:
        return [finding async for finding in examine(scene)]

    with acting_as(user):
        findings = asyncio.run(look())
    yield from findings


def _user(settings: Settings | None, data_dir: Path) -> pwd.struct_passwd | None:
    """Give whom the server runs as."""
    return user_of(data_dir) if settings is None else named_user(settings.user)


def _sources(
    settings: Settings | None, configs: Sequence[Path], workers: Sequence[Path], data_dir: Path
) -> list[list[Path]]:
    """Give the files of each process."""
    if settings is not None:
        return [list(settings.config_paths(name)) for name in (MAIN, *settings.workers)]
    common = list(configs) or [data_dir / CONFIG_NAME]
    return [common, *([*common, worker] for worker in workers)]


def _scene(
    target: Target,
    processes: Sequence[Process],
    settings: Settings | None,
    data_dir: Path,
    *,
    names_known: bool,
) -> tuple[Scene, list[Finding]]:
    """Give what is examined, and what is to be told of it already."""
    config = processes[0].config
    findings: list[Finding] = []
    dsn = redis = None
    try:
        redis = find_redis(config, data_dir)
    except HiddenError as failed:
        findings.append(_hidden(failed))
    except StartError:
        if len(processes) == 1:
            findings.append(note("alone", "no Redis is configured and none runs: there is one process"))
    try:
        dsn = config.database.dsn() if config.database is not None else running_dsn(data_dir)
    except OSError as failed:
        findings = [_hidden(failed)]
    scene = Scene(
        target=target,
        processes=processes,
        settings=settings,
        data_dir=data_dir,
        dsn=dsn,
        redis=redis,
        prefix=key_prefix(config),
        names_known=names_known,
        now_ms=SystemClock().now_ms,
        hidden=any(finding.severity == "error" for finding in findings),
        systemctl="systemctl" if system_of(Target()) is not None else None,
        public=None if settings is None else ("127.0.0.1", 80 if settings.certificate is None else 443),
    )
    return scene, findings


def _hidden(failed: Exception) -> Finding:
    return error(
        "server-hidden",
        f"it cannot be read where the server's own PostgreSQL and Redis are: {failed}",
        "run this as root, or as the user that runs the server",
    )
