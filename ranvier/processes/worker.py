"""One worker: what ``ranvier up`` and ``ranvier worker`` run, and ``ranvier up --workers`` runs many of.

Without a Redis it is the whole server, and its bus is a function call.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.leases import Leases
from ranvier.cluster.rate_limits import SharedCounts
from ranvier.config import Config
from ranvier.config.database import RedisConfig
from ranvier.config.listeners import Listener as ListenerConfig
from ranvier.config.listeners import is_for_workers
from ranvier.http.app import Application
from ranvier.http.listeners import Listener, tls_context
from ranvier.http.request_log import LOGGER_NAME, RequestLog
from ranvier.log.bus import LocalBus
from ranvier.log.clock import SystemClock
from ranvier.log.redis_bus import RedisBus
from ranvier.processes.application import Built, build_application, rates_of
from ranvier.processes.cluster_parts import ClusterParts, cluster_parts, key_prefix
from ranvier.processes.console import private_listener
from ranvier.processes.core import Core, start_core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.front_end import Adopting, FrontEnd
from ranvier.processes.garbage import collect_garbage
from ranvier.processes.identity import identity_of, make_first_key
from ranvier.processes.listeners import http_listener, tls_files
from ranvier.processes.logs import LogOutput
from ranvier.processes.moving import Moving
from ranvier.processes.predecessor import once_free
from ranvier.processes.prepare_database import prepare_database
from ranvier.processes.run_folder import run_folder
from ranvier.processes.start_error import StartError
from ranvier.processes.successors import Successors
from ranvier.storage import log as storage
from ranvier.storage.database import Database
from ranvier.wire.members import BACKGROUND, DRAINING

logger = logging.getLogger(__name__)

_FAILED_GRACE_S = 1.0
_LEAST_GRACE_S = 0.5
# So long may take what nobody waits for any more, once everything has ended: where a database stands still.
_LEFT_OVER_S = 5.0


@dataclass(frozen=True)
class Surroundings:
    """What a worker finds: PostgreSQL; Redis, or it is alone; perhaps a front that brings connections.

    ``supervise`` keeps running what this process started for itself, and ``restarts`` says that somebody
    starts this process again when it ends.
    """

    dsn: str
    redis: RedisConfig | None
    database_size: int
    front: socket.socket | None = None
    supervise: Callable[[], Coroutine[None, None, None]] | None = None
    restarts: bool = False


@dataclass
class RunningWorker:
    """A worker that serves, and what of its configuration can change meanwhile."""

    config: Config
    application: Application
    cluster: ClusterParts | None
    leases: Leases | None
    listeners: list[Listener]

    @property
    def description(self) -> str:
        """Say what runs, for the service manager."""
        return f"Worker {self.config.worker.name} serves"

    @property
    def is_restarting(self) -> bool:
        """Whether this worker ends because it was asked to be started again."""
        return self.cluster is not None and self.cluster.workers.is_restarting

    def apply(self, config: Config) -> None:
        """Take over what can change: log level, rate limits, roles, certificates.

        Raises ``OSError`` for a certificate that cannot be used, ``StartError`` for what no server can
        change; then all is as it was.
        """
        before = self.config
        if config.server.server_name != before.server.server_name:
            raise StartError(f"this server is {before.server.server_name}, and that cannot be changed")
        if before.has_tls:
            # Looked at before: a context that took half of a pair would answer nobody any more.
            tls_context(tls_files(before))
        for listener in self.listeners:
            listener.reload_certificate()
        logging.getLogger().setLevel(config.server.log_level)
        self.application.limiter.change_rates(rates_of(config))
        if self.cluster is not None and config.worker.roles != before.worker.roles:
            self.cluster.members.set_roles(config.worker.roles)
        if self.leases is not None:
            drained = self.cluster is not None and self.cluster.members.own.state == DRAINING
            self.leases.willing = BACKGROUND in config.worker.roles and not drained
        changed = _taken_over(before, config)
        names = [it.name for it in fields(config)]
        if later := [name for name in names if getattr(changed, name) != getattr(config, name)]:
            logger.warning("What else changed takes effect after a restart (%s)", ", ".join(later))
        self.config = changed


def _taken_over(before: Config, config: Config) -> Config:
    """Give the configuration that a worker goes by once it has taken over what can change."""
    return replace(
        before,
        server=replace(before.server, log_level=config.server.log_level),
        rate_limits=config.rate_limits,
        worker=replace(before.worker, roles=config.worker.roles),
        warnings=config.warnings,
    )


@asynccontextmanager
async def running_worker(
    config: Config, data_dir: Path, around: Surroundings, output: LogOutput, on_orphaned: Callable[[], None]
) -> AsyncIterator[RunningWorker]:
    """Run a worker; on leaving, drain it and stop. ``on_orphaned`` is called when its front is gone."""
    request_log = RequestLog(output.line_writer(LOGGER_NAME))
    times = DatabaseTimes()
    folder = run_folder(data_dir)
    database = Database({"dsn": around.dsn}, size=around.database_size, spent=times.add)
    try:
        await prepare_database(database, config)
        await make_first_key(config, database)
        async with _shared_board(config, folder, around) as board, _tasks_that_end() as (tasks, end):
            bus = _bus(config, around.redis)
            core = await _core(config, database, bus, tasks, board)
            shared_counts = SharedCounts(bus) if isinstance(bus, RedisBus) else None
            built = await build_application(config, core, times, request_log, shared_counts=shared_counts)
            if isinstance(bus, RedisBus):
                await bus.start()
                core.log_tasks.append(tasks.create_task(bus.run()))
            await built.returning_users.resume()
            async with (
                _cluster(config, core, built, around, folder, board) as cluster,
                _serving(config, core, built, cluster, around, folder, on_orphaned) as worker,
            ):
                yield worker
            end.reschedule(asyncio.get_running_loop().time() + _LEFT_OVER_S)
    finally:
        await database.close()


@asynccontextmanager
async def _tasks_that_end() -> AsyncIterator[tuple[asyncio.TaskGroup, asyncio.Timeout]]:
    """Give a group of tasks, and what says by when they have to end once the block is left."""
    try:
        async with asyncio.timeout(None) as end, asyncio.TaskGroup() as tasks:
            yield tasks, end
    except TimeoutError:
        if not end.expired():
            raise
        logger.warning("What did not end was broken off")


@asynccontextmanager
async def _shared_board(
    config: Config, folder: Path, around: Surroundings
) -> AsyncIterator[HeadBoard | None]:
    if around.redis is None:
        yield None
        return
    board = await once_free(config, partial(HeadBoard, folder), fronted=around.front is not None)
    try:
        yield board
    finally:
        board.close()


def _bus(config: Config, redis: RedisConfig | None) -> LocalBus | RedisBus:
    if redis is None:
        return LocalBus()
    return RedisBus(redis, prefix=key_prefix(config), clock=SystemClock())


async def _core(
    config: Config,
    database: Database,
    bus: LocalBus | RedisBus,
    tasks: asyncio.TaskGroup,
    board: HeadBoard | None,
) -> Core:
    clock = SystemClock()
    core = await start_core(
        database,
        bus=bus,
        clock=clock,
        identity=identity_of(config),
        tasks=tasks,
        tail_config=config.server.tail,
        committed=board.note if board is not None else None,
        line=board,
        leases=_leases(config, database) if board is not None else None,
    )
    if board is not None:
        await board.begin(core.tail.pos, partial(storage.head, database))
    return core


def _leases(config: Config, database: Database) -> Leases:
    willing = BACKGROUND in config.worker.roles
    return Leases(database=database, holder=config.worker.name, clock=SystemClock(), willing=willing)


@asynccontextmanager
async def _cluster(
    config: Config, core: Core, built: Built, around: Surroundings, folder: Path, board: HeadBoard | None
) -> AsyncIterator[ClusterParts | None]:
    redis = around.redis
    if redis is None or board is None:
        # Nobody is beside this process, so all that others left behind is its own.
        for name in await built.returning_users.left_by():
            await built.returning_users.take_over(name)
        yield None
        return
    assert isinstance(core.bus, RedisBus)
    async with cluster_parts(
        config,
        core,
        built,
        redis=redis,
        bus=core.bus,
        folder=folder,
        board=board,
        fronted=around.front is not None,
    ) as cluster:
        yield cluster


@asynccontextmanager
async def _serving(
    config: Config,
    core: Core,
    built: Built,
    cluster: ClusterParts | None,
    around: Surroundings,
    folder: Path,
    on_orphaned: Callable[[], None],
) -> AsyncIterator[RunningWorker]:
    application = built.application
    # For those who want to ask just this worker, as they may once it is announced.
    private = http_listener(config, private_listener(folder, config.worker.name), application)
    await private.start()
    is_announced = False
    try:
        if cluster is not None:
            await cluster.start(core)
            is_announced = True
        listeners = [*await _listeners(config, application, around.front), private]
    except BaseException:
        await private.stop(grace_s=0)
        if cluster is not None and is_announced:  # else it is another one's name
            await cluster.stop(0)
        raise
    front = moving = None
    if around.front is not None:
        # Not the private one, which is there to ask just this worker.
        definitions = [listener.definition for listener in config.listeners]
        adopting = Adopting(dict(zip(definitions, listeners[:-1], strict=True)), core.tasks)
        moving = Moving(folder=folder, own_name=config.worker.name, adopting=adopting)
        moving.start()
        front = FrontEnd(around.front, adopting, on_orphaned)
        if cluster is not None:
            cluster.writers.listen(front.take_rooms)
        front.start()
        if cluster is not None:
            cluster.workers.when_drained(front.drain)
            cluster.workers.when_drained(moving.drain)
    if cluster is not None:
        _leave_when_drained(config, core, built, cluster, listeners, fronted=front is not None)
        if around.restarts:  # not before: asked to end it would break its start off
            cluster.members.let_restart()
    core.run_always(collect_garbage())
    if around.supervise is not None:
        core.run_always(around.supervise())
    grace_s = config.server.drain_timeout_ms / 1000
    try:
        yield RunningWorker(config, application, cluster, core.leases, listeners)
    except asyncio.CancelledError:
        # A part failed, and all others were stopped with it: who waits for them would wait in vain.
        grace_s = min(grace_s, _FAILED_GRACE_S)
        raise
    finally:
        if front is not None:
            front.end()
            if front.is_orphaned:  # and whoever starts the server again waits for this process
                grace_s = min(grace_s, _FAILED_GRACE_S)
        await _stop(core, built, cluster, moving, listeners, grace_s)


async def _stop(
    core: Core,
    built: Built,
    cluster: ClusterParts | None,
    moving: Moving | None,
    listeners: Sequence[Listener],
    grace_s: float,
) -> None:
    """Take nothing new, finish in ``grace_s`` seconds what was begun, and end all parts in order."""
    if moving is not None:
        moving.drain()
    if cluster is not None:
        await cluster.drain()
    built.drain()
    if moving is not None:
        # What comes back is to be here before the listeners count what they have to finish.
        await moving.settle()
    loop = asyncio.get_running_loop()
    until = loop.time() + grace_s
    await asyncio.gather(*(listener.stop(grace_s=grace_s) for listener in listeners))
    if cluster is not None:
        await cluster.stop(max(_LEAST_GRACE_S, until - loop.time()))
    if moving is not None:
        moving.close()
    await core.stop()


def _leave_when_drained(
    config: Config,
    core: Core,
    built: Built,
    cluster: ClusterParts,
    listeners: Sequence[Listener],
    *,
    fronted: bool,
) -> None:
    """Have clients and jobs go on elsewhere once this worker is drained, though it runs on.

    Who asks for its health or its metrics alone goes on here, unless the front can bring them to others.
    """
    successors = Successors(cluster.members, core.writer.standstill)
    of_clients = [fronted or "client" in it.resources for it in _configured(config, fronted=fronted)]
    for listener, leaves in zip(listeners[:-1], of_clients, strict=True):
        if leaves:
            cluster.workers.when_drained(partial(listener.leave, successors))
    cluster.workers.when_drained(built.drain)
    if core.leases is not None:
        cluster.workers.when_drained(core.leases.leave)


def _configured(config: Config, *, fronted: bool) -> list[ListenerConfig]:
    """Give the listeners that clients find this worker by, in order."""
    if fronted:
        return list(config.listeners)
    return [it for it in config.own_listeners if not is_for_workers(it)]


async def _listeners(config: Config, application: Application, front: socket.socket | None) -> list[Listener]:
    configured = _configured(config, fronted=front is not None)
    found = [http_listener(config, it, application) for it in configured]
    if front is None:  # else that one accepts, and gives what it accepted with the listener's definition
        try:
            for listener in found:
                await listener.start()
        except BaseException:
            for listener in found:
                await listener.stop(grace_s=0)
            raise
    return found


def named(config: Config, name: str) -> Config:
    """Give the configuration with another name of this worker."""
    return replace(config, worker=replace(config.worker, name=name))


def with_listeners(config: Config, listeners: tuple[ListenerConfig, ...]) -> Config:
    """Give the configuration with the listeners that a front has open. Raises StartError."""
    paths = (config.server.tls_certificate_path, config.server.tls_private_key_path)
    if any(listener.tls for listener in listeners) and None in paths:
        raise StartError(
            "a listener that is open has TLS, and the configuration names no certificate any more: restart "
            "`ranvier up`"
        )
    return replace(config, listeners=listeners)
