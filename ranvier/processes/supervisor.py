"""``ranvier up --workers N``: PostgreSQL, Redis, N workers and the front, and all of them kept running."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ranvier.cluster.head_board import PLACES
from ranvier.config import Config
from ranvier.config.database import DatabaseConfig, RedisConfig
from ranvier.config.listeners import Listener, is_for_workers
from ranvier.processes import front_protocol
from ranvier.processes.front import Front, FrontListener
from ranvier.processes.front_protocol import Plan
from ranvier.processes.identity import make_first_key
from ranvier.processes.life import RESTARTING, Reload, read_configuration
from ranvier.processes.listeners import addresses_of
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.prepare_database import prepare_database
from ranvier.processes.redis import EmbeddedRedis
from ranvier.processes.server import Supervise, database_dsn
from ranvier.processes.service_manager import ServiceManager
from ranvier.processes.start_error import StartError
from ranvier.processes.surroundings import telling_surroundings
from ranvier.storage.database import Database

logger = logging.getLogger(__name__)

_SPARE_CONNECTIONS: Final = 10  # for other commands, `psql`, and PostgreSQL's own
_MOST_CONNECTIONS: Final = 10
_LEAST_CONNECTIONS: Final = 2
_SHARED_CONNECTIONS: Final = 50
_MOST_ADDED: Final = 8
_RESTART_PAUSE_S: Final = 1.0
_STEADY_S: Final = 10.0
_STOP_MARGIN_S: Final = 15.0


def run_workers(
    config: Config,
    count: int,
    *,
    data_dir: Path,
    arguments: Sequence[str],
    reload: Reload,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run everything until SIGTERM or SIGINT, then stop it in order; at SIGHUP all read settings again.

    ``arguments`` are what a worker is started with, besides its own. ``ready`` is called when all workers
    serve. Raises ``StartError`` and what the parts raise.
    """
    output = set_up_logging(config.server.log_level, "front")
    uvloop.run(_main(config, count, data_dir, arguments, reload, ready, output))


async def _main(
    config: Config,
    count: int,
    data_dir: Path,
    arguments: Sequence[str],
    reload: Reload,
    ready: Callable[[], None],
    output: LogOutput,
) -> None:
    manager = ServiceManager.take()
    stop, reread = asyncio.Event(), asyncio.Event()
    serving: Workers | None = None
    main = asyncio.current_task()
    assert main is not None

    def on_stop() -> None:
        if serving is None and not stop.is_set():
            main.cancel()
        stop.set()

    def on_change(change: Callable[[Workers], None]) -> None:
        if serving is not None:
            change(serving)
        else:
            logger.warning("No worker is added or removed while the server starts")

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_stop)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    loop.add_signal_handler(signal.SIGTTIN, on_change, Workers.add)
    loop.add_signal_handler(signal.SIGTTOU, on_change, Workers.remove)
    try:
        async with output.gathering(), running_workers(config, count, data_dir, arguments) as workers:
            await workers.wait_ready()
            serving = workers
            ready()
            manager.ready(f"{len(workers.ready)} workers serve")
            workers.run_always(manager.watchdog())
            workers.run_always(_reload_when_asked(workers, manager, reload, reread))
            logger.info("Ready: %d workers", len(workers.ready))
            await stop.wait()
            manager.stopping()
            logger.info("Stopping")
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        logger.info("Stopped before it was ready")


async def _reload_when_asked(
    workers: Workers, manager: ServiceManager, reload: Reload, reread: asyncio.Event
) -> None:
    def take_over(config: Config) -> None:
        logging.getLogger().setLevel(config.server.log_level)
        workers.reload()

    while True:
        await reread.wait()
        reread.clear()
        manager.reloading()
        await read_configuration(reload, take_over)
        manager.ready(f"{len(workers.pids)} workers serve")


@asynccontextmanager
async def redis_server(config: Config, data_dir: Path) -> AsyncIterator[tuple[RedisConfig, Supervise | None]]:
    """Give the configured Redis; or run the embedded one, and give what keeps it running."""
    if config.redis is not None:
        yield config.redis, None
        return
    redis = EmbeddedRedis(data_dir)
    try:
        yield await redis.start(), redis.supervise
    finally:
        await redis.stop()


@asynccontextmanager
async def running_workers(
    config: Config, count: int, data_dir: Path, arguments: Sequence[str]
) -> AsyncIterator[Workers]:
    """Run everything; on leaving, stop it in order: front, workers, Redis, PostgreSQL."""
    async with AsyncExitStack() as stack:
        sizes = Sizes.of(count, config.database)
        dsn, keep_database = await stack.enter_async_context(
            database_dsn(config, data_dir, max_connections=sizes.max_connections)
        )
        redis, keep_redis = await stack.enter_async_context(redis_server(config, data_dir))
        database = Database({"dsn": dsn}, size=1)
        try:
            await prepare_database(database, config)  # once, and not by each worker
            await make_first_key(config, database)
        finally:
            await database.close()
        stack.enter_context(telling_surroundings(data_dir, dsn, redis))
        _tell_of_no_effect(config)
        front = Front([_front_listener(listener) for listener in config.listeners])
        front.open()
        plan = Plan(
            name="",
            dsn=dsn,
            redis=front_protocol.redis_fields(redis),
            database_size=sizes.connections_each,
            listeners=config.listeners,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = Workers(
                    front=front,
                    tasks=tasks,
                    plan=plan,
                    arguments=arguments,
                    most=sizes.most_workers,
                    stop_within_s=config.server.drain_timeout_ms / 1000 + _STOP_MARGIN_S,
                )
                for keep in (keep_database, keep_redis):
                    if keep is not None:
                        workers.run_always(keep())
                for _ in range(count):
                    workers.add()
                workers.run_always(front.run())
                front.serve()
                try:
                    yield workers
                finally:
                    front.close()
                    await workers.stop()
        finally:
            front.close()


def _front_listener(listener: Listener) -> FrontListener:
    # Workers of one machine have sockets of their own for each other.
    addresses = () if is_for_workers(listener) else addresses_of(listener)
    return FrontListener(listener.definition, addresses, listener.tls)


def _tell_of_no_effect(config: Config) -> None:
    if config.worker.listeners:
        logger.warning("worker_listeners have no effect with --workers; put them under listeners")
    for listener in (*config.listeners, *config.worker.listeners):
        if "replication" in listener.resources:
            logger.warning(
                "No replication at %s: the workers of this command have a socket each in the data folder. "
                "Workers that those of other machines are to reach are started each by `ranvier worker` "
                "with worker_listeners of its own",
                listener.path or f"port {listener.port}",
            )


@dataclass(frozen=True)
class Sizes:
    """How many workers there may be, and how many connections to PostgreSQL each of them may have.

    ``max_connections`` is what an embedded PostgreSQL is to allow.
    """

    most_workers: int
    connections_each: int
    max_connections: int

    @classmethod
    def of(cls, count: int, database: DatabaseConfig | None) -> Sizes:
        """Plan for ``count`` workers and some that are added later; a PostgreSQL elsewhere is as it is."""
        if database is not None:
            return cls(PLACES, database.max_connections, 0)
        most = min(PLACES, count + _MOST_ADDED)
        each = max(_LEAST_CONNECTIONS, min(_MOST_CONNECTIONS, _SHARED_CONNECTIONS // count))
        return cls(most, each, most * each + _SPARE_CONNECTIONS)


class Workers:
    """Keep workers running: one that ends without being asked to is started again under its name."""

    def __init__(
        self,
        *,
        front: Front,
        tasks: asyncio.TaskGroup,
        plan: Plan,
        arguments: Sequence[str],
        most: int,
        stop_within_s: float,
    ) -> None:
        self._front = front
        self._tasks = tasks
        self._plan = plan
        self._arguments = arguments
        self._most = most
        self._stop_within_s = stop_within_s
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._unwanted: set[str] = set()
        self._always: list[asyncio.Task[None]] = []
        self._reloading: dict[str, asyncio.Task[None]] = {}
        self._starting = True
        self._stopping = False

    @property
    def ready(self) -> list[str]:
        """Give the names of those that take connections now."""
        return self._front.ready_workers()

    @property
    def pids(self) -> dict[str, int]:
        """Give the processes that run now, by the names of their workers."""
        return {name: process.pid for name, process in self._processes.items()}

    def run_always(self, work: object) -> None:
        """Run something until all is stopped."""
        self._always.append(self._tasks.create_task(work))  # type: ignore[arg-type]

    def add(self) -> None:
        """Start one worker more, unless there are as many as can be, or all stop."""
        if self._stopping:
            return
        if len(self._keeping) >= self._most:
            logger.warning("No worker is added: there are %d, and there is room for no more", self._most)
            return
        number = 1
        while f"worker{number}" in self._keeping:
            number += 1
        name = f"worker{number}"
        self._keeping[name] = self._tasks.create_task(self._keep_running(name))

    def remove(self) -> None:
        """Drain the newest worker, or better one that was drained before; the last one that serves stays."""
        if self._stopping:
            return
        names = [name for name in self._keeping if name not in self._unwanted]
        serving = set(self._front.ready_workers())
        drained = [name for name in names if name not in serving and not self._front.is_starting(name)]
        victim = (drained or names)[-1]
        if len(names) > 1 and serving - {victim, *self._unwanted}:
            self._unwanted.add(victim)
            self._signal(victim, signal.SIGTERM)
        else:
            logger.warning("No worker is removed: no other one serves")

    def reload(self) -> None:
        """Have each worker read the configuration again, one that is starting as soon as it serves.

        Until then the signal would end it, and it may have read the files as they were before.
        """
        for name in self._processes:
            if not self._front.is_starting(name):
                self._signal(name, signal.SIGHUP)
            elif name not in self._reloading:
                self._reloading[name] = self._tasks.create_task(self._reload_later(name))

    async def _reload_later(self, name: str) -> None:
        try:
            await self._front.wait_ready([name])
        finally:
            del self._reloading[name]
        self._signal(name, signal.SIGHUP)

    async def wait_ready(self) -> None:
        """Wait until every worker has taken connections; one that ends before takes all others with it.

        One that has, and has ended since, is not waited for: it is started again.
        """
        await self._front.wait_started(self._keeping)
        self._starting = False

    async def stop(self) -> None:
        """Drain all workers and wait until they are gone; those that take too long are killed."""
        self._stopping = True
        self._unwanted.update(self._keeping)
        for name in list(self._processes):
            self._signal(name, signal.SIGTERM)
        for task in (*self._always, *self._reloading.values()):
            task.cancel()
        if self._keeping:
            _, late = await asyncio.wait(self._keeping.values(), timeout=self._stop_within_s)
            for name in [name for name, task in self._keeping.items() if task in late]:
                logger.error("Worker %s does not end; it is killed", name)
                self._signal(name, signal.SIGKILL)
            if late:
                await asyncio.wait(late)

    async def _keep_running(self, name: str) -> None:
        try:
            while name not in self._unwanted:
                started = time.monotonic()
                level = logging.ERROR
                try:
                    status = await self._run(name)
                    how = f"ended (status {status})"
                    if status == RESTARTING:
                        level = logging.INFO
                except OSError as error:  # no memory, no file, no program for now
                    how = f"could not be started ({error})"
                if name in self._unwanted:
                    return
                if self._starting and not self._front.has_started(name):
                    raise StartError(f"{name} {how} before it was ready; its log says why")
                logger.log(level, "Worker %s %s; starting it again", name, how)
                if time.monotonic() - started < _STEADY_S:
                    await asyncio.sleep(_RESTART_PAUSE_S)
        finally:
            self._keeping.pop(name, None)
            self._unwanted.discard(name)

    async def _run(self, name: str) -> int:
        """Start one worker and give its exit status once it has ended."""
        ours, theirs = front_protocol.make_pair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ranvier.app.worker", *self._arguments),
                *("--front-fd", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the front, which stops the workers in order.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes[name] = process
        front_protocol.send(ours, msgspec.structs.replace(self._plan, name=name))
        self._front.add_worker(name, ours)
        if name in self._unwanted:  # while it was being started
            self._signal(name, signal.SIGTERM)
        try:
            return await process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            self._processes.pop(name, None)
            self._front.remove_worker(name)

    def _signal(self, name: str, signum: int) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            process.send_signal(signum)
