"""Find the configuration that a command works with, and make the first one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ranvier.config import Config, ConfigError, Problem, generate_files, load
from ranvier.config.generate import CONFIG_NAME, DEFAULT_PORT, GeneratedFile
from ranvier.spec.ids import is_server_name

DEFAULT_DATA = "data"
DEFAULT_SERVER_NAME = "localhost"

Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """Add ``--data`` and ``--config-path``, whose other names are ``--config`` and ``-c``."""
    command = click.option(
        "--config-path",
        "--config",
        "-c",
        "configs",
        multiple=True,
        metavar="FILE_OR_FOLDER",
        type=click.Path(path_type=Path, exists=True),
        help="A configuration file, or a folder of *.yaml files; may be given several times, and later ones "
        f"replace keys of earlier ones. Default: {CONFIG_NAME} in the data folder.",
    )(command)
    return click.option(
        "--data",
        "data_dir",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_DATA,
        show_default=True,
        help="The folder that the server keeps its data in; workers of one machine name the same.",
    )(command)


def load_config(
    data_dir: Path, configs: Sequence[Path], *, notes: bool = False, files: bool = False
) -> Config:
    """Load the configuration and print its warnings; exit with every error if there are any.

    With ``notes`` what has no effect is said as well: where the server is started, and where one asks. With
    ``files`` those that it names are looked at.
    """
    paths = list(configs) or [data_dir / CONFIG_NAME]
    try:
        if not configs and not paths[0].exists():
            raise click.ClickException(
                f"there is no {paths[0]}; make one with `ranvier up` or `ranvier generate-config`, "
                "or say with --data or --config where it is"
            )
        config = load(paths, data_dir=data_dir if files else None)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    except ConfigError as error:
        show(error.problems)
        errors = sum(problem.severity == "error" for problem in error.problems)
        raise click.ClickException(
            f"the configuration has {errors} error{'s' if errors > 1 else ''}"
        ) from error
    show([problem for problem in config.warnings if notes or problem.severity != "note"])
    return config


def show(problems: Sequence[Problem]) -> None:
    """Print problems, one a line, to standard error."""
    for problem in problems:
        click.echo(str(problem), err=True)


def is_new(data_dir: Path) -> bool:
    """Tell whether the data folder is missing or empty."""
    return not data_dir.exists() or not any(data_dir.iterdir())


def _write_all(files: Sequence[GeneratedFile]) -> None:
    """Write files, or none: half of them would be taken for a folder that is in use. Raises ``OSError``."""
    written: list[Path] = []
    try:
        for file in files:
            file.write()
            written.append(file.path)
    except OSError:
        for path in written:
            path.unlink()
        raise


def make_data_folder(data_dir: Path, server_name: str | None, port: int | None) -> None:
    """Make the data folder with a configuration, a signing key and secrets; nothing there is replaced."""
    server_name = server_name or DEFAULT_SERVER_NAME
    if not is_server_name(server_name):
        raise click.BadParameter(f"{server_name!r} is not a server name such as example.org")
    try:
        # Root's own folder stays open to be walked through, for the user that PostgreSQL runs as; the
        # files in it that hold secrets are closed.
        data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        files = generate_files(server_name, data_dir.absolute(), port=port or DEFAULT_PORT)
        if there := next((file.path for file in files if file.path.exists()), None):
            raise FileExistsError(errno.EEXIST, "", there)  # before one is written that was lost
        _write_all(files)
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} is already there and is not replaced") from error
    except OSError as error:
        raise click.ClickException(f"cannot write the configuration: {error}") from error
