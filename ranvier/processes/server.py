"""One process that is the whole server: what ``ranvier up`` runs."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from ranvier.config import Config
from ranvier.config.listeners import Listener as ListenerConfig
from ranvier.http.app import Application
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress, TlsFiles, UnixAddress
from ranvier.http.request_log import LOGGER_NAME, RequestLog
from ranvier.log.bus import LocalBus
from ranvier.log.clock import SystemClock
from ranvier.processes.application import build_application
from ranvier.processes.console import private_listener
from ranvier.processes.core import start_core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.garbage import collect_garbage
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.processes.prepare_database import prepare_database
from ranvier.processes.run_folder import run_folder
from ranvier.rooms.draft import Identity
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database

logger = logging.getLogger(__name__)

_FAILED_GRACE_S = 1.0

Supervise = Callable[[], Coroutine[None, None, None]]


def run(config: Config, *, data_dir: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Run the server until SIGTERM or SIGINT, then stop everything in order.

    ``ready`` is called when it answers. Raises ``StartError`` and what the parts raise, alone or in a
    group; a part that fails later ends the server in the same way.
    """
    output = set_up_logging(config.server.log_level)
    uvloop.run(_main(config, data_dir, ready, output))


async def _main(config: Config, data_dir: Path, ready: Callable[[], None], output: LogOutput) -> None:
    stop = asyncio.Event()
    starting = True
    main = asyncio.current_task()
    assert main is not None

    def on_signal() -> None:
        # A start may wait long (for a database, for its recovery) and has nothing to finish.
        if starting and not stop.is_set():
            main.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    try:
        async with output.gathering(), running_server(config, data_dir=data_dir, output=output):
            starting = False
            ready()
            logger.info("Ready")
            await stop.wait()
            logger.info("Stopping")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        logger.info("Stopped before it was ready")


@asynccontextmanager
async def database_dsn(config: Config, data_dir: Path) -> AsyncIterator[tuple[str, Supervise | None]]:
    """Give the DSN of the configured PostgreSQL; or run the embedded one, and give what keeps it running."""
    if config.database is not None:
        yield config.database.dsn(), None
        return
    postgres = EmbeddedPostgres(data_dir)
    try:
        yield await postgres.start(), postgres.supervise
    finally:
        await postgres.stop()


@asynccontextmanager
async def running_server(
    config: Config, *, data_dir: Path, output: LogOutput
) -> AsyncIterator[list[Listener]]:
    """Run the server and give its listeners; on leaving, finish what is in flight and stop."""
    request_log = RequestLog(output.line_writer(LOGGER_NAME))
    times = DatabaseTimes()
    async with database_dsn(config, data_dir) as (dsn, supervise):
        size = config.database.max_connections if config.database is not None else 10
        database = Database({"dsn": dsn}, size=size, spent=times.add)
        try:
            await prepare_database(database, config)
            async with _serving(config, data_dir, database, times, request_log, supervise) as listeners:
                yield listeners
        finally:
            await database.close()


@asynccontextmanager
async def _serving(
    config: Config,
    data_dir: Path,
    database: Database,
    times: DatabaseTimes,
    request_log: RequestLog,
    supervise: Supervise | None,
) -> AsyncIterator[list[Listener]]:
    async with asyncio.TaskGroup() as tasks:
        core = await start_core(
            database,
            bus=LocalBus(),
            clock=SystemClock(),
            identity=identity_of(config),
            tasks=tasks,
            tail_config=config.server.tail,
        )
        application, drain, _ = await build_application(config, core, times, request_log)
        private = private_listener(run_folder(data_dir), config.worker.name)
        wanted = [*config.listeners, private]
        listeners = [http_listener(config, listener, application) for listener in wanted]
        for listener in listeners:
            await listener.start()
        core.run_always(collect_garbage())
        if supervise is not None:
            core.run_always(supervise())
        grace_s = config.server.drain_timeout_ms / 1000
        try:
            yield listeners
        except asyncio.CancelledError:
            # A part failed, and all others were stopped with it: who waits for them would wait in vain.
            grace_s = min(grace_s, _FAILED_GRACE_S)
            raise
        finally:
            drain()
            await asyncio.gather(*(listener.stop(grace_s=grace_s) for listener in listeners))
            core.stop()


def identity_of(config: Config) -> Identity:
    """Give the name and the key that the server signs with."""
    path = config.keys.signing_key_path
    assert path is not None, "the command line makes a signing key where none is configured"
    line = path.read_text(encoding="ascii").strip().splitlines()[0]
    return Identity(config.server.server_name, SigningKey.parse(line))


def http_listener(config: Config, wanted: ListenerConfig, application: Application) -> Listener:
    """Make what answers at one listener of the configuration."""
    tls = None
    if wanted.tls:
        certificate, private_key = config.server.tls_certificate_path, config.server.tls_private_key_path
        assert certificate is not None, "checked when the configuration was read"
        assert private_key is not None, "checked when the configuration was read"
        tls = TlsFiles(certificate, private_key)
    served = resources_of(wanted)
    return Listener(
        ListenerSettings(addresses=addresses_of(wanted), tls=tls),
        application.endpoint(served, x_forwarded=wanted.x_forwarded),
    )


def addresses_of(wanted: ListenerConfig) -> tuple[TcpAddress | UnixAddress, ...]:
    """Give where a listener of the configuration is."""
    if wanted.path is not None:
        return (UnixAddress(wanted.path, wanted.mode),)
    return tuple(TcpAddress(host, wanted.port) for host in wanted.bind_addresses)


def resources_of(wanted: ListenerConfig) -> list[str]:
    """Give the resources of a listener that this release has endpoints for."""
    known: tuple[str, ...] = ("client", "metrics", "health", "console")
    served = [name for name in known if name in wanted.resources]
    if "client" in served and "console" not in served:
        served.append("admin")  # the same for whoever has an administrator's access token
    return served
