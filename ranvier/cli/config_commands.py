"""``ranvier generate-config`` and ``ranvier check-config``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ranvier.cli.data_folder import (
    DEFAULT_DATA,
    DEFAULT_SERVER_NAME,
    load_config,
    make_data_folder,
    place_options,
)
from ranvier.config.generate import CONFIG_NAME


@click.command()
@click.option("--server-name", metavar="NAME", default=DEFAULT_SERVER_NAME, show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), help="The port that the server answers on.")
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA,
    show_default=True,
    metavar="DIR",
)
def generate_config(server_name: str, port: int | None, data_dir: Path) -> None:
    """Write a commented homeserver.yaml, a signing key and a secret into the data folder."""
    make_data_folder(data_dir, server_name, port)
    click.echo(f"Wrote {data_dir / CONFIG_NAME} for {server_name}.")


@click.command()
@place_options
def check_config(data_dir: Path, configs: Sequence[Path]) -> None:
    """Tell everything that is wrong with a configuration, and with the files that it names."""
    config = load_config(data_dir, configs, notes=True, files=True)
    click.echo(f"The configuration of {config.server.server_name} is good.")
