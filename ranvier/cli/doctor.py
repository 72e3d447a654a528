"""``ranvier doctor``: see whether all is well, and what to do about what is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ranvier.config import Config
from ranvier.config.generate import CONFIG_NAME
from ranvier.deploy.actions import DeployError
from ranvier.deploy.findings import Finding, exit_status
from ranvier.deploy.record import read_record
from ranvier.deploy.scene import Process, Scene, load_processes
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.target import Target
from ranvier.log.clock import SystemClock

_PATH: Any = click.Path(path_type=Path, exists=True)


@click.command()
@click.option(
    "--config-path",
    "--config",
    "configs",
    multiple=True,
    type=_PATH,
    metavar="FILE_OR_FOLDER",
    help="What every process reads. Default: what `ranvier deploy` wrote, else homeserver.yaml in --data.",
)
@click.option(
    "--worker",
    "workers",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="What one worker reads besides; may be given several times.",
)
@click.option("--data", "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="The data folder.")
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
@click.option("--verbose", is_flag=True, help="Tell what is well, too.")
@click.pass_context
def doctor(
    context: click.Context,
    configs: Sequence[Path],
    workers: Sequence[Path],
    data_dir: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Examine a server: files, sockets, Redis, PostgreSQL, workers.

    Ends with status 0 when all is well, 1 when there are warnings, 2 when there are errors.
    """
    logging.getLogger("ranvier").setLevel(logging.CRITICAL)  # what goes wrong is told as findings
    target = Target()
    try:
        settings = None if configs else read_record(target).settings
    except (DeployError, OSError) as error:
        raise click.ClickException(f"{error}; run this as root") from error
    data_dir = data_dir or (settings.data_dir if settings is not None else Path("data"))
    processes, findings = load_processes(_sources(settings, configs, workers, data_dir))
    if processes:
        scene = _scene(target, processes, settings, data_dir, names_known=bool(workers or settings))
        findings += asyncio.run(_examine(scene))
    status = exit_status(findings)
    if as_json:
        words = ("ok", "warnings", "errors")
        click.echo(msgspec.json.encode({"status": words[status], "findings": findings}).decode())
    else:
        _show(findings, verbose)
    context.exit(status)


def _sources(
    settings: Settings | None, configs: Sequence[Path], workers: Sequence[Path], data_dir: Path
) -> list[list[Path]]:
    """Give the files of each process."""
    if settings is not None:
        files = sorted((settings.config_dir / "workers").glob("*.yaml"))
        names = dict.fromkeys([*settings.workers, *(file.stem for file in files)])
        return [list(settings.config_paths(name)) for name in (MAIN, *names)]
    common = list(configs) or [data_dir / CONFIG_NAME]
    return [common, *([*common, worker] for worker in workers)]


def _scene(
    target: Target,
    processes: Sequence[Process],
    settings: Settings | None,
    data_dir: Path,
    *,
    names_known: bool,
) -> Scene:
    from ranvier.processes.cluster_parts import key_prefix  # noqa: PLC0415 (slow, and --help needs it not)

    config = processes[0].config
    dsn, redis = _places(config, data_dir)
    return Scene(
        target=target,
        processes=processes,
        settings=settings,
        data_dir=data_dir,
        dsn=dsn,
        redis=redis,
        prefix=key_prefix(config),
        names_known=names_known,
        now_ms=SystemClock().now_ms,
    )


def _places(config: Config, data_dir: Path) -> tuple[str | None, Any]:
    """Find PostgreSQL and Redis: as configured, or those of a running ``ranvier up``."""
    from ranvier.processes.postgres import running_dsn  # noqa: PLC0415
    from ranvier.processes.start_error import StartError  # noqa: PLC0415
    from ranvier.processes.surroundings import find_redis  # noqa: PLC0415

    dsn = config.database.dsn() if config.database is not None else running_dsn(data_dir)
    try:
        return dsn, find_redis(config, data_dir)
    except (StartError, OSError):
        return dsn, None


async def _examine(scene: Scene) -> list[Finding]:
    from ranvier.deploy.examine import examine  # noqa: PLC0415

    return [finding async for finding in examine(scene)]


def _show(findings: Sequence[Finding], verbose: bool) -> None:
    for finding in findings:
        if verbose or finding.severity != "ok":
            click.echo(str(finding))
    counts = [
        f"{count} {word}{'s' if count != 1 else ''}"
        for word in ("error", "warning")
        if (count := sum(finding.severity == word for finding in findings))
    ]
    well = sum(finding.severity == "ok" for finding in findings)
    click.echo(f"{', '.join(counts) or 'All is well'} ({well} checks passed).")
