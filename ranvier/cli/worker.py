"""``ranvier worker``: one worker of several."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import click

from ranvier.cli.data_folder import DEFAULT_DATA, load_config
from ranvier.cli.up import read_again, stops_with_a_sentence, with_signing_key
from ranvier.config import Config
from ranvier.config.generate import CONFIG_NAME


@click.command()
@click.option(
    "--config-path",
    "--config",
    "-c",
    "configs",
    multiple=True,
    metavar="FILE_OR_FOLDER",
    type=click.Path(path_type=Path, exists=True),
    help="A configuration file, or a folder of *.yaml files; may be given several times, and later ones "
    f"replace keys of earlier ones. Default: {CONFIG_NAME} in the data folder.",
)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA,
    show_default=True,
    help="The folder that the server keeps its data in; workers of one machine name the same.",
)
@click.option("--name", metavar="NAME", help="The worker's name; it goes over worker_name.")
@click.option("--front-fd", type=int, hidden=True)
def worker(configs: Sequence[Path], data_dir: Path, name: str | None, front_fd: int | None) -> None:
    """Run one worker until SIGTERM, then let it finish what it began.

    SIGHUP makes it read its configuration again. It finds PostgreSQL and Redis in the configuration, or those
    of a running `ranvier up` with the same data folder.
    """
    config = with_signing_key(load_config(data_dir, configs), data_dir)
    # Imported here, so that the commands that need no server start at once.
    from ranvier.processes.life import receive_plan, run_worker  # noqa: PLC0415
    from ranvier.processes.surroundings import find_surroundings  # noqa: PLC0415
    from ranvier.processes.worker import Surroundings, named  # noqa: PLC0415

    with stops_with_a_sentence():
        if front_fd is not None:
            front = socket.socket(fileno=front_fd)
            plan = receive_plan(front)
            name = plan.name
            around = Surroundings(plan.dsn, plan.redis_config(), plan.database_size, front)
        else:
            around = find_surroundings(config, data_dir)
        if name is not None:
            config = named(config, name)

        def reload() -> Config:
            again = read_again(data_dir, configs)
            return again if name is None else named(again, name)

        run_worker(config, data_dir=data_dir, reload=reload, around=around)
