"""``ranvier register-user``: make an account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.cli.server_place import find_place
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
    place = find_place(context, data_dir, configs)
    config = load_config(place.data_dir, place.configs)
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    from ranvier.processes.register_user import register_user as make_account  # noqa: PLC0415 (as in ``up``)

    try:
        # PostgreSQL knows a user of the machine by its name, and so the server's, but not root.
        with acting_as(place.user):
            make_account(config, place.data_dir, name, password, admin)
    except (MatrixError, PostgresError, StartError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Made {'the administrator' if admin else 'the user'} {name}.")
