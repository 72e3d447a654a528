"""The command ``ranvier``."""

from __future__ import annotations

import click

import ranvier
from ranvier.cli.config_commands import check_config, generate_config
from ranvier.cli.deploy import deploy
from ranvier.cli.doctor import doctor
from ranvier.cli.register_user import register_user
from ranvier.cli.status import status
from ranvier.cli.up import up
from ranvier.cli.worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ranvier.__version__, prog_name="ranvier")
def main() -> None:
    """Run a Matrix homeserver."""


for command in (up, worker, status, register_user, generate_config, check_config, deploy, doctor):
    main.add_command(command)
