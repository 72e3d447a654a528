"""``ranvier up``: start the server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from ranvier.cli.data_folder import DEFAULT_DATA, is_new, load_config, make_data_folder, place_options
from ranvier.config import Config, load
from ranvier.config.generate import CONFIG_NAME, SIGNING_KEY_NAME
from ranvier.config.listeners import DEFAULT_LISTENER, Listener
from ranvier.processes.postgres import PostgresError
from ranvier.processes.start_error import LostKeyError, StartError


@click.command()
@place_options
@click.option(
    "--server-name", metavar="NAME", help="The server's name, when its first configuration is made."
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Answer on this port instead of the configured one."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Run N processes that share the work, with a Redis of their own if none is configured.",
)
def up(
    data_dir: Path, configs: Sequence[Path], server_name: str | None, port: int | None, workers: int | None
) -> None:
    """Start the server and run it until Ctrl-C or SIGTERM; SIGHUP makes it read its configuration again.

    The first time, with neither a configuration nor a data folder, it makes both. Where the configuration has
    a Redis, `ranvier worker` may be started beside it.
    """
    fronted = workers is not None
    with stops_with_a_sentence():
        config = as_server(_first_config(data_dir, configs, server_name, port), port, fronted=fronted)
        config = with_signing_key(config, data_dir, may_be_made=True)
    # Imported here, so that the commands that need no server start at once.
    from ranvier.processes.open_files import allow_many_files  # noqa: PLC0415
    from ranvier.processes.server import run  # noqa: PLC0415

    allow_many_files()

    def ready() -> None:
        click.echo(greeting(config, data_dir, configs))

    def reload() -> Config:
        return as_server(read_again(data_dir, configs), port, fronted=fronted)

    with stops_with_a_sentence():
        if workers is None:
            sys.exit(run(config, data_dir=data_dir, reload=reload, ready=ready))
        else:
            from ranvier.processes.supervisor import run_workers  # noqa: PLC0415

            arguments = ["--data", str(data_dir)]
            for path in configs:
                arguments += ["--config-path", str(path)]
            if port is not None:
                arguments += ["--port", str(port)]
            run_workers(config, workers, data_dir=data_dir, arguments=arguments, reload=reload, ready=ready)


def _first_config(
    data_dir: Path, configs: Sequence[Path], server_name: str | None, port: int | None
) -> Config:
    """Load the configuration, made before where there is nothing yet. Raises ClickException, ``OSError``."""
    if not configs and is_new(data_dir):
        make_data_folder(data_dir, server_name, port)
        click.echo(f"Made {data_dir} with a configuration and a signing key.")
    config = load_config(data_dir, configs, notes=True)
    if server_name is not None and server_name != config.server.server_name:
        raise click.BadParameter(
            f"this server is {config.server.server_name}, and a server's name cannot be changed",
            param_hint="--server-name",
        )
    return config


@contextmanager
def stops_with_a_sentence() -> Iterator[None]:
    """Turn what the administrator can mend into a message without a traceback."""
    from ranvier.processes.redis import RedisError  # noqa: PLC0415 (as in ``up``)

    expected_kinds = (PostgresError, RedisError, StartError, OSError)
    try:
        yield
    except expected_kinds as error:
        raise click.ClickException(message_of(error)) from error
    except ExceptionGroup as group:
        # A task group wraps what the administrator can mend, such as a port that is in use.
        expected, others = group.split(expected_kinds)
        if expected is None or others is not None:
            raise
        raise click.ClickException("; ".join(_messages(expected))) from group


def as_server(config: Config, port: int | None, *, fronted: bool) -> Config:
    """Give the configuration of a whole server, which answers on this port if one is given."""
    config = config.of_server(fronted=fronted)
    return config if port is None else with_port(config, port)


def with_port(config: Config, port: int) -> Config:
    """Give the configuration with its first TCP listener moved to another port."""
    listeners = list(config.own_listeners)
    index = next((i for i, listener in enumerate(listeners) if listener.path is None), None)
    if index is None:
        listeners.append(replace(DEFAULT_LISTENER, port=port))
    else:
        listeners[index] = replace(listeners[index], port=port)
    if config.worker.listens_apart:
        return replace(config, worker=replace(config.worker, listeners=tuple(listeners)))
    return replace(config, listeners=tuple(listeners))


def with_signing_key(config: Config, data_dir: Path, *, may_be_made: bool = False) -> Config:
    """Give the configuration with the path of its signing key, which is in the data folder if none is named.

    There it need not be yet if it ``may_be_made``. Raises LostKeyError, ``OSError``.
    """
    named = config.keys.signing_key_path
    path = named or data_dir.absolute() / SIGNING_KEY_NAME
    if not path.is_file() and (named is not None or not may_be_made):
        raise LostKeyError(path)
    return replace(config, keys=replace(config.keys, signing_key_path=path))


def read_again(data_dir: Path, configs: Sequence[Path]) -> Config:
    """Read the configuration of a running server. Raises ConfigError, StartError, ``OSError``."""
    return with_signing_key(load(list(configs) or [data_dir / CONFIG_NAME]), data_dir)


def greeting(config: Config, data_dir: Path, configs: Sequence[Path]) -> str:
    """Say where clients find the server and how to make the first user."""
    places = [_url(config, listener) for listener in config.own_listeners if "client" in listener.resources]
    program = sys.argv[0] if Path(sys.argv[0]).name == "ranvier" else "ranvier"
    options = [f" --config {path}" for path in configs]
    # Without it root means the server that was deployed, if one was.
    if data_dir != Path(DEFAULT_DATA) or (os.geteuid() == 0 and not configs):
        options.append(f" --data {data_dir}")
    return (
        f"Matrix homeserver {config.server.server_name}\n"
        f"Clients reach it at:  {', '.join(places) or 'no listener'}\n"
        f"Make the first user:  {program} register-user{''.join(options)} --admin NAME\n"
        "Stop it with Ctrl-C."
    )


def _messages(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [message for inner in error.exceptions for message in _messages(inner)]
    return [message_of(error)]


def message_of(error: BaseException) -> str:
    """Give what an error says, without the number that Python puts before the system's."""
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    return str(error)


def _url(config: Config, listener: Listener) -> str:
    if listener.path is not None:
        return f"unix:{listener.path}"
    addresses = listener.bind_addresses
    host = (
        "localhost"
        if not addresses or addresses[0] in ("::", "0.0.0.0", "127.0.0.1", "::1")
        else addresses[0]
    )
    return f"{'https' if listener.tls else 'http'}://{host}:{listener.port}"
