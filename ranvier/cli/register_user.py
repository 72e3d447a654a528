"""``ranvier register-user``: make an account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.processes.postgres import PostgresError
from ranvier.processes.start_error import StartError
from ranvier.spec.errors import MatrixError


@click.command()
@click.argument("name")
@click.option("--password", help="The password; asked for if it is not given, which keeps it off the screen.")
@click.option("--admin", is_flag=True, help="Let the user administer the server.")
@place_options
def register_user(
    name: str, password: str | None, admin: bool, data_dir: Path, configs: Sequence[Path]
) -> None:
    """Make the account NAME, whether the server runs or not."""
    config = load_config(data_dir, configs)
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    from ranvier.processes.register_user import register_user as make_account  # noqa: PLC0415 (as in ``up``)

    try:
        make_account(config, data_dir, name, password, admin)
    except (MatrixError, PostgresError, StartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Made {'the administrator' if admin else 'the user'} {name}.")
