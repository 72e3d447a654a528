"""What ``ranvier up`` runs: one worker with its PostgreSQL, the whole server or the first of several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import uvloop

from ranvier.config import Config
from ranvier.processes.life import Reload, live
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.processes.service_manager import ServiceManager
from ranvier.processes.surroundings import telling_surroundings
from ranvier.processes.worker import RunningWorker, Surroundings, running_worker

_CONNECTIONS = 10

Supervise = Callable[[], Coroutine[None, None, None]]


def run(config: Config, *, data_dir: Path, reload: Reload, ready: Callable[[], None] = lambda: None) -> int:
    """Run the server until SIGTERM or SIGINT, then stop everything in order; SIGHUP reads settings again.

    With a Redis in the configuration it is one worker of those that use the same Redis and PostgreSQL.
    ``ready`` is called when it answers. Gives the exit status. Raises ``StartError`` and what the parts
    raise, alone or in a group.
    """
    output = set_up_logging(config.server.log_level)
    manager = ServiceManager.take()
    return uvloop.run(
        live(
            lambda on_stop: _running_server(config, data_dir, output, on_stop, restarts=manager.is_there),
            manager=manager,
            output=output,
            reload=reload,
            ready=ready,
        )
    )


@asynccontextmanager
async def _running_server(
    config: Config, data_dir: Path, output: LogOutput, on_stop: Callable[[], None], *, restarts: bool
) -> AsyncIterator[RunningWorker]:
    async with database_dsn(config, data_dir) as (dsn, supervise):
        size = config.database.max_connections if config.database is not None else _CONNECTIONS
        around = Surroundings(dsn, config.redis, size, supervise=supervise, restarts=restarts)
        # Where PostgreSQL is in the configuration, workers find it there, and this folder may be another's.
        told = telling_surroundings(data_dir, dsn, config.redis) if supervise is not None else nullcontext()
        with told:
            async with running_worker(config, data_dir, around, output, on_stop) as worker:
                yield worker


@asynccontextmanager
async def database_dsn(
    config: Config, data_dir: Path, *, max_connections: int | None = None
) -> AsyncIterator[tuple[str, Supervise | None]]:
    """Give the DSN of the configured PostgreSQL; or run the embedded one, and give what keeps it running."""
    if config.database is not None:
        yield config.database.dsn(), None
        return
    settings = {} if max_connections is None else {"max_connections": str(max_connections)}
    postgres = EmbeddedPostgres(data_dir, settings=settings)
    try:
        yield await postgres.start(), postgres.supervise
    finally:
        await postgres.stop()
