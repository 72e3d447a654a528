"""Find the server that a command is about: the one that its options name, else the one that was deployed."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

from ranvier.deploy.actions import DeployError
from ranvier.deploy.record import read_record
from ranvier.deploy.server_user import server_user
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.target import Target


@dataclass(frozen=True)
class ServerPlace:
    """Where a server is: its files, its data folder, and the user that runs it, if that is known."""

    configs: Sequence[Path]
    data_dir: Path
    user: pwd.struct_passwd | None


def find_place(context: click.Context, data_dir: Path, configs: Sequence[Path]) -> ServerPlace:
    """Give the server that ``place_options`` name; without them root means the one that was deployed.

    Raises ClickException.
    """
    given = bool(configs) or context.get_parameter_source("data_dir") is not ParameterSource.DEFAULT
    try:
        deployed = _deployed()
    except (DeployError, OSError) as error:
        if not given:
            raise click.ClickException(str(error)) from error
        deployed = None
    if deployed is not None and not given:
        configs, data_dir = deployed.config_paths(MAIN), deployed.data_dir
    return ServerPlace(configs, data_dir, server_user(deployed, configs, data_dir))


def _deployed() -> Settings | None:
    """Give what was deployed on this machine; only root acts for its user. Raises as ``read_record``."""
    return read_record(Target()).settings if os.geteuid() == 0 else None
