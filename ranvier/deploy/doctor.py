"""Find the server that is to be examined, and be who has to look at it."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ranvier.config.database import RedisConfig
from ranvier.config.generate import CONFIG_NAME
from ranvier.deploy.actions import DeployError
from ranvier.deploy.check_workers import find_drained
from ranvier.deploy.examine import examine, examine_machine
from ranvier.deploy.findings import Finding, error, note
from ranvier.deploy.record import Record, read_record
from ranvier.deploy.scene import Process, Scene, load_processes
from ranvier.deploy.server_user import is_of, server_user
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.system import system_of
from ranvier.deploy.target import Target
from ranvier.log.clock import SystemClock
from ranvier.processes.cluster_parts import key_prefix
from ranvier.processes.postgres import running_dsn
from ranvier.processes.service_user import acting_as
from ranvier.processes.start_error import StartError
from ranvier.processes.surroundings import HiddenError, find_redis

_DATA: Final = Path("data")
_HTTP: Final = ("127.0.0.1", 80)
_HTTPS: Final = ("127.0.0.1", 443)


@dataclass(frozen=True)
class _Named:
    """The server that is examined: ``settings`` if it is the whole of what was deployed; ``user`` runs it."""

    settings: Settings | None
    configs: Sequence[Path]
    workers: Sequence[Path]
    data_dir: Path
    user: pwd.struct_passwd | None


def examine_server(
    configs: Sequence[Path], workers: Sequence[Path], data_dir: Path | None
) -> Iterator[Finding]:
    """Examine the server that files or a data folder name, else the one that was deployed.

    Root looks at what is on the machine, and as the server's user at what the server uses.
    """
    target = Target()
    given = bool(configs or workers) or data_dir is not None
    try:
        record = read_record(target)
    except (DeployError, OSError) as failed:
        unknown = f"it is not known what was deployed: {failed}"
        if not given:
            advice = "run this as root" if os.geteuid() != 0 else "put that right, then run this again"
            yield error("deployment", unknown, advice)
            return
        if not isinstance(failed, PermissionError):  # whoever may not read it means a server of their own
            yield note("deployment", unknown)
        record = Record()
    if not given and record.settings is None and not (_DATA / CONFIG_NAME).exists():
        yield _undeployed(record)
        return
    named = _named(record.settings, configs, workers, data_dir)
    with acting_as(named.user):
        processes, findings = load_processes(_sources(named))
        scene, more = _scene(target, processes, named)
        drained = asyncio.run(find_drained(scene))
    scene = replace(scene, record=record, drained=drained)
    yield from (*findings, *more)
    yield from examine_machine(scene)

    async def look() -> list[Finding]:
        return [finding async for finding in examine(scene)]

    with acting_as(named.user):
        findings = asyncio.run(look())
    yield from findings


def _undeployed(record: Record) -> Finding:
    if record.begun:
        return error("deployment", "the last `ranvier deploy` did not come to its end", "run it again")
    advice = "run `ranvier deploy`, or say with --data or --config-path which server is meant"
    return error("config", f"nothing was deployed, and there is no {_DATA / CONFIG_NAME}", advice)


def _named(
    deployed: Settings | None, configs: Sequence[Path], workers: Sequence[Path], data_dir: Path | None
) -> _Named:
    """Give the server that is meant: the one that was deployed also where only its files are named."""
    files = [*configs, *workers]
    if deployed is None or ((files or data_dir is not None) and not is_of(deployed, files, data_dir)):
        place, settings = data_dir or _DATA, None
        configs = configs or [place / CONFIG_NAME]
    else:
        place, settings = data_dir or deployed.data_dir, None
        if not configs and data_dir is not None and (data_dir / CONFIG_NAME).exists():
            configs = [data_dir / CONFIG_NAME]
        elif not configs:
            configs = deployed.config_paths(MAIN)
            settings = None if workers else deployed
    return _Named(settings, configs, workers, place, server_user(deployed, files, place))


def _sources(named: _Named) -> list[list[Path]]:
    """Give the files of each process."""
    settings = named.settings
    if settings is not None:
        return [list(settings.config_paths(name)) for name in settings.names]
    return [list(named.configs), *([*named.configs, worker] for worker in named.workers)]


def _scene(target: Target, processes: Sequence[Process], named: _Named) -> tuple[Scene, list[Finding]]:
    """Give what is examined, and what is to be told of it already."""
    settings = named.settings
    dsn, redis, findings = _stores(processes, named.data_dir)
    scene = Scene(
        target=target,
        processes=processes,
        settings=settings,
        data_dir=named.data_dir,
        dsn=dsn,
        redis=redis,
        prefix=key_prefix(processes[0].config) if processes else "",
        names_known=bool(named.workers or settings),
        now_ms=SystemClock().now_ms,
        hidden=any(finding.severity == "error" for finding in findings),
        systemctl="systemctl" if system_of(Target()) is not None else None,
        public=None if settings is None else _HTTP if settings.certificate is None else _HTTPS,
        public_tls=_HTTPS if settings is not None and settings.certificate is None else None,
    )
    return scene, findings


def _stores(
    processes: Sequence[Process], data_dir: Path
) -> tuple[str | None, RedisConfig | None, list[Finding]]:
    """Give where the database and Redis are, as far as that is known, and what is to be told of it."""
    findings: list[Finding] = []
    dsn = redis = None
    if not processes:
        return dsn, redis, findings
    config = processes[0].config
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
    return dsn, redis, findings


def _hidden(failed: Exception) -> Finding:
    return error(
        "server-hidden",
        f"it cannot be read where the server's own PostgreSQL and Redis are: {failed}",
        "run this as root, or as the user that runs the server",
    )
