"""``ranvier doctor``: see whether all is well, and what to do about what is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ranvier.deploy.findings import Finding, exit_status
from ranvier.deploy.guard import guarded

_PATH: Any = click.Path(path_type=Path)


@click.command()
@click.option(
    "--config-path",
    "--config",
    "configs",
    multiple=True,
    type=_PATH,
    metavar="FILE_OR_FOLDER",
    help="What every process reads. Default: homeserver.yaml in --data, else what `ranvier deploy` wrote.",
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

    Run by root it looks as the server's own user at what that one has to read and to reach. Ends with status
    0 when all is well, 1 when there are warnings, 2 when there are errors.
    """
    logging.getLogger("ranvier").setLevel(logging.CRITICAL)  # what goes wrong is told as findings
    # Imported here, so that --help does not wait for it.
    from ranvier.deploy.doctor import examine_server  # noqa: PLC0415

    findings = list(guarded("the server", examine_server(configs, workers, data_dir)))
    status = exit_status(findings)
    if as_json:
        words = ("ok", "warnings", "errors")
        click.echo(msgspec.json.encode({"status": words[status], "findings": findings}).decode())
    else:
        _show(findings, verbose)
    context.exit(status)


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
