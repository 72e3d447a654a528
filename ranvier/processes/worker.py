"""One worker of several: what ``ranvier worker`` runs, and what ``ranvier up --workers`` runs many of."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.leases import Leases
from ranvier.cluster.rate_limits import SharedCounts
from ranvier.config import Config, ConfigError
from ranvier.config.database import RedisConfig
from ranvier.http.app import Application
from ranvier.http.listeners import Listener
from ranvier.http.request_log import LOGGER_NAME, RequestLog
from ranvier.log.clock import SystemClock
from ranvier.log.redis_bus import RedisBus
from ranvier.processes import front_protocol, service_manager
from ranvier.processes.application import build_application, rates_of
from ranvier.processes.cluster_parts import ClusterParts, cluster_parts, is_for_workers, key_prefix
from ranvier.processes.console import private_listener
from ranvier.processes.core import start_core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.front_end import FrontEnd
from ranvier.processes.front_protocol import Plan
from ranvier.processes.garbage import collect_garbage
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.prepare_database import prepare_database
from ranvier.processes.run_folder import run_folder
from ranvier.processes.server import http_listener, identity_of
from ranvier.processes.start_error import StartError
from ranvier.storage.database import Database

logger = logging.getLogger(__name__)

_FAILED_GRACE_S = 1.0
_PLAN_TIMEOUT_S = 10.0

Reload = Callable[[], Config]


@dataclass(frozen=True)
class Surroundings:
    """What a worker finds: PostgreSQL, Redis, perhaps a front that brings connections."""

    dsn: str
    redis: RedisConfig
    database_size: int
    front: socket.socket | None = None


def run_worker(config: Config, *, data_dir: Path, reload: Reload, around: Surroundings) -> None:
    """Run one worker until SIGTERM or SIGINT, then drain and stop.

    ``reload`` reads the configuration again, at SIGHUP. Raises ``StartError`` and what the parts raise.
    """
    output = set_up_logging(config.server.log_level, config.worker.name)
    uvloop.run(_main(config, data_dir, reload, around, output))


def receive_plan(front: socket.socket) -> Plan:
    """Wait for what the parent has planned for this worker. Raises StartError when there is no parent."""
    front.settimeout(_PLAN_TIMEOUT_S)
    try:
        message, _ = front_protocol.receive(front)
    except TimeoutError:
        message = None
    if not isinstance(message, Plan):
        raise StartError("--front-fd is for workers that `ranvier up` starts")
    front.setblocking(False)
    return message


async def _main(
    config: Config, data_dir: Path, reload: Reload, around: Surroundings, output: LogOutput
) -> None:
    stop, reread = asyncio.Event(), asyncio.Event()
    starting = True
    main = asyncio.current_task()
    assert main is not None

    def on_stop() -> None:
        if starting and not stop.is_set():
            main.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_stop)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    try:
        async with output.gathering(), running_worker(config, data_dir, around, output, on_stop) as worker:
            starting = False
            service_manager.ready(f"Worker {config.worker.name} serves")
            logger.info("Ready")
            await _until_stopped(worker, reload, stop, reread)
            service_manager.stopping()
            logger.info("Draining")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        logger.info("Stopped before it was ready")


async def _until_stopped(
    worker: RunningWorker, reload: Reload, stop: asyncio.Event, reread: asyncio.Event
) -> None:
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(service_manager.watchdog())
        reloading = tasks.create_task(_reload_when_asked(worker, reload, reread))
        await stop.wait()
        beating.cancel()
        reloading.cancel()


async def _reload_when_asked(worker: RunningWorker, reload: Reload, reread: asyncio.Event) -> None:
    while True:
        await reread.wait()
        reread.clear()
        service_manager.reloading()
        try:
            worker.apply(await asyncio.to_thread(reload))
            logger.info("Read the configuration again")
        except ConfigError as error:
            for problem in error.problems:
                logger.error("%s", problem)
            logger.error("The new configuration is not good; the old one stays")
        except OSError as error:
            logger.error("The new configuration cannot be used: %s; the old one stays", error)
        service_manager.ready(f"Worker {worker.config.worker.name} serves")


@dataclass
class RunningWorker:
    """A worker that serves, and what of its configuration can change meanwhile."""

    config: Config
    application: Application
    cluster: ClusterParts
    listeners: list[Listener]

    def apply(self, config: Config) -> None:
        """Take over what can change: log level, rate limits, roles, certificates.

        Raises ``OSError`` for a certificate that cannot be used.
        """
        for listener in self.listeners:
            listener.reload_certificate()
        logging.getLogger().setLevel(config.server.log_level)
        self.application.limiter.change_rates(rates_of(config))
        if config.worker.roles != self.config.worker.roles:
            self.cluster.members.set_roles(config.worker.roles)
        self.config = config


@asynccontextmanager
async def running_worker(
    config: Config, data_dir: Path, around: Surroundings, output: LogOutput, on_orphaned: Callable[[], None]
) -> AsyncIterator[RunningWorker]:
    """Run a worker; on leaving, drain it and stop. ``on_orphaned`` is called when its front is gone."""
    request_log = RequestLog(output.line_writer(LOGGER_NAME))
    times = DatabaseTimes()
    folder = run_folder(data_dir)
    board = HeadBoard(folder)
    database = Database({"dsn": around.dsn}, size=around.database_size, spent=times.add)
    try:
        await prepare_database(database, config)
        async with asyncio.TaskGroup() as tasks:
            bus = RedisBus(around.redis, prefix=key_prefix(config), clock=SystemClock())
            core = await start_core(
                database,
                bus=bus,
                clock=SystemClock(),
                identity=identity_of(config),
                tasks=tasks,
                tail_config=config.server.tail,
                committed=board.note,
                leases=Leases(database=database, holder=config.worker.name, clock=SystemClock()),
            )
            board.begin(core.tail.pos)
            application, drain, console = await build_application(
                config, core, times, request_log, shared_counts=SharedCounts(bus)
            )
            await bus.start()
            core.run_always(bus.run())
            async with cluster_parts(
                config, core, application, console, redis=around.redis, folder=folder, board=board
            ) as cluster:
                listeners = await _listeners(config, application, around.front, folder)
                await cluster.start(core)
                front = None
                if around.front is not None:
                    front = FrontEnd(around.front, listeners, tasks, on_orphaned)
                    front.start()
                    cluster.workers.when_drained(front.drain)
                core.run_always(collect_garbage())
                grace_s = config.server.drain_timeout_ms / 1000
                try:
                    yield RunningWorker(config, application, cluster, listeners)
                except asyncio.CancelledError:
                    grace_s = min(grace_s, _FAILED_GRACE_S)
                    raise
                finally:
                    if front is not None:
                        front.drain()
                    await cluster.drain()
                    drain()
                    await asyncio.gather(*(listener.stop(grace_s=grace_s) for listener in listeners))
                    await cluster.stop(grace_s)
                    core.stop()
    finally:
        await database.close()
        board.close()


async def _listeners(
    config: Config, application: Application, front: socket.socket | None, folder: Path
) -> list[Listener]:
    # For those who want to ask just this worker.
    private = http_listener(config, private_listener(folder, config.worker.name), application)
    await private.start()
    if front is not None:
        # The front accepts; this process answers on what it is given, by the listener's index.
        return [*(http_listener(config, listener, application) for listener in config.listeners), private]
    wanted = config.worker.listeners or config.listeners
    found = [http_listener(config, it, application) for it in wanted if not is_for_workers(it)]
    for listener in found:
        await listener.start()
    return [*found, private]


def named(config: Config, name: str) -> Config:
    """Give the configuration with another name of this worker."""
    return replace(config, worker=replace(config.worker, name=name))
