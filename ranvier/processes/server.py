"""One process that is the whole server: what ``ranvier up`` runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator
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
from ranvier.processes.core import start_core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.rooms.draft import Identity
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate

logger = logging.getLogger(__name__)


def run(config: Config, *, data_dir: Path) -> None:
    """Run the server until SIGTERM or SIGINT, then stop everything in order."""
    output = set_up_logging(config.server.log_level)
    uvloop.run(_main(config, data_dir, output))


async def _main(config: Config, data_dir: Path, output: LogOutput) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with output.gathering(), running_server(config, data_dir=data_dir, output=output):
        logger.info("Ready")
        await stop.wait()
        logger.info("Stopping")


@asynccontextmanager
async def database_dsn(config: Config, data_dir: Path) -> AsyncIterator[str]:
    """Give the DSN of the configured PostgreSQL, or run the embedded one meanwhile."""
    if config.database is not None:
        yield config.database.dsn()
        return
    postgres = EmbeddedPostgres(data_dir)
    dsn = await postgres.start()
    try:
        yield dsn
    finally:
        await postgres.stop()


@asynccontextmanager
async def running_server(
    config: Config, *, data_dir: Path, output: LogOutput
) -> AsyncIterator[list[Listener]]:
    """Run the server and give its listeners; on leaving, finish what is in flight and stop."""
    request_log = RequestLog(output.line_writer(LOGGER_NAME))
    times = DatabaseTimes()
    async with database_dsn(config, data_dir) as dsn:
        size = config.database.max_connections if config.database is not None else 10
        database = Database({"dsn": dsn}, size=size, spent=times.add)
        try:
            await migrate(database, config.server.server_name)
            async with _serving(config, database, times, request_log) as listeners:
                yield listeners
        finally:
            await database.close()


@asynccontextmanager
async def _serving(
    config: Config, database: Database, times: DatabaseTimes, request_log: RequestLog
) -> AsyncIterator[list[Listener]]:
    async with asyncio.TaskGroup() as tasks:
        core = await start_core(
            database, bus=LocalBus(), clock=SystemClock(), identity=_identity(config), tasks=tasks
        )
        application, drain = await build_application(config, core, times, request_log)
        listeners = [_listener(config, wanted, application) for wanted in config.listeners]
        for listener in listeners:
            await listener.start()
        # What was made until now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        try:
            yield listeners
        finally:
            drain()
            grace_s = config.server.drain_timeout_ms / 1000
            await asyncio.gather(*(listener.stop(grace_s=grace_s) for listener in listeners))
            core.stop()


def _identity(config: Config) -> Identity:
    path = config.keys.signing_key_path
    assert path is not None, "the command line makes a signing key where none is configured"
    line = path.read_text(encoding="ascii").strip().splitlines()[0]
    return Identity(config.server.server_name, SigningKey.parse(line))


def _listener(config: Config, wanted: ListenerConfig, application: Application) -> Listener:
    addresses: tuple[TcpAddress | UnixAddress, ...]
    if wanted.path is not None:
        addresses = (UnixAddress(wanted.path, wanted.mode),)
    else:
        addresses = tuple(TcpAddress(host, wanted.port) for host in wanted.bind_addresses)
    tls = None
    if wanted.tls:
        certificate, private_key = config.server.tls_certificate_path, config.server.tls_private_key_path
        assert certificate is not None, "checked when the configuration was read"
        assert private_key is not None, "checked when the configuration was read"
        tls = TlsFiles(certificate, private_key)
    served = resources_of(wanted)
    return Listener(
        ListenerSettings(addresses=addresses, tls=tls),
        application.endpoint(served, x_forwarded=wanted.x_forwarded),
    )


def resources_of(wanted: ListenerConfig) -> list[str]:
    """Give the resources of a listener that this release has endpoints for."""
    return [name for name in ("client", "metrics", "health") if name in wanted.resources]
