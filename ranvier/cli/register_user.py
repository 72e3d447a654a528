"""``ranvier register-user``: make an account."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from ranvier.cli.data_folder import load_config, place_options
from ranvier.config.generate import CONFIG_NAME
from ranvier.deploy.actions import DeployError
from ranvier.deploy.record import read_record
from ranvier.deploy.server_user import server_user
from ranvier.deploy.settings import MAIN, Settings
from ranvier.deploy.target import Target
from ranvier.processes.postgres import PostgresError
from ranvier.processes.service_user import acting_as
from ranvier.processes.start_error import StartError
from ranvier.spec.errors import MatrixError


@click.command()
@click.argument("name")
@click.option("--password", help="The password; asked for if it is not given, which keeps it off the screen.")
@click.option("--admin", is_flag=True, help="Let the user administer the server.")
@place_options
@click.pass_context
def register_user(
    context: click.Context,
    name: str,
    password: str | None,
    admin: bool,
    data_dir: Path,
    configs: Sequence[Path],
) -> None:
    """Make the account NAME, whether the server runs or not.

    Where `ranvier deploy` was used, root needs no options: it is made in the server that was deployed.
    """
    deployed = _deployed()
    given = configs or context.get_parameter_source("data_dir") is not ParameterSource.DEFAULT
    if deployed is not None and not given and not (data_dir / CONFIG_NAME).exists():
        configs, data_dir = deployed.config_paths(MAIN), deployed.data_dir
    config = load_config(data_dir, configs)
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    from ranvier.processes.register_user import register_user as make_account  # noqa: PLC0415 (as in ``up``)

    try:
        # PostgreSQL knows a user of the machine by its name, and so the server's, but not root.
        with acting_as(server_user(deployed, configs, data_dir)):
            make_account(config, data_dir, name, password, admin)
    except (MatrixError, PostgresError, StartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Made {'the administrator' if admin else 'the user'} {name}.")


def _deployed() -> Settings | None:
    """Give what was deployed on this machine; only root acts for its user. Raises ClickException."""
    if os.geteuid() != 0:
        return None
    try:
        return read_record(Target()).settings
    except (DeployError, OSError) as error:
        raise click.ClickException(str(error)) from error
