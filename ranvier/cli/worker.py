"""``ranvier worker``: one worker of several."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.cli.up import as_server, read_again, stops_with_a_sentence, with_signing_key
from ranvier.config import Config


@click.command()
@place_options
@click.option("--name", metavar="NAME", help="The worker's name; it goes over worker_name.")
@click.option("--front-fd", type=int, hidden=True)
@click.option("--port", type=int, hidden=True)
def worker(
    configs: Sequence[Path], data_dir: Path, name: str | None, front_fd: int | None, port: int | None
) -> None:
    """Run one worker until SIGTERM, then let it finish what it began.

    SIGHUP makes it read its configuration again. It finds PostgreSQL and Redis in the configuration, or those
    of a running `ranvier up` with the same data folder.
    """
    with stops_with_a_sentence():
        # What has no effect was said once by the command that has the front.
        config = with_signing_key(load_config(data_dir, configs, notes=front_fd is None), data_dir)
    # Imported here, so that the commands that need no server start at once.
    from ranvier.processes.life import receive_plan, run_worker  # noqa: PLC0415
    from ranvier.processes.open_files import allow_many_files  # noqa: PLC0415
    from ranvier.processes.surroundings import find_surroundings  # noqa: PLC0415
    from ranvier.processes.worker import Surroundings, named, with_listeners  # noqa: PLC0415

    allow_many_files()
    with stops_with_a_sentence():
        if front_fd is not None:
            front = socket.socket(fileno=front_fd)
            plan = receive_plan(front)
            name = plan.name
            around = Surroundings(plan.dsn, plan.redis_config(), plan.database_size, front)
            config = with_listeners(as_server(config, port, fronted=True), plan.listeners)
        else:
            around = find_surroundings(config, data_dir)
        if name is not None:
            config = named(config, name)

        def reload() -> Config:
            again = read_again(data_dir, configs)
            if front_fd is not None:
                again = as_server(again, port, fronted=True)
            return again if name is None else named(again, name)

        sys.exit(run_worker(config, data_dir=data_dir, reload=reload, around=around))
