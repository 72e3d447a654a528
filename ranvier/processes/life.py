"""The life of a process that serves: signals, what the service manager is told, reading settings again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ranvier.config import Config, ConfigError
from ranvier.processes import front_protocol
from ranvier.processes.front_protocol import Plan
from ranvier.processes.logs import LogOutput, set_up_logging
from ranvier.processes.service_manager import ServiceManager
from ranvier.processes.start_error import StartError
from ranvier.processes.worker import RunningWorker, Surroundings, running_worker

logger = logging.getLogger(__name__)

RESTARTING: Final = os.EX_TEMPFAIL
"""What a process ends with that was asked to restart: service managers let one rest that ended with 0."""

_PLAN_TIMEOUT_S: Final = 10.0

Reload = Callable[[], Config]
"""Read the configuration again. Raises ConfigError, StartError, ``OSError``."""

Start = Callable[[Callable[[], None]], AbstractAsyncContextManager[RunningWorker]]
"""Run a worker; what is given is to be called when it has lost what it lives from, and should end."""


def run_worker(config: Config, *, data_dir: Path, reload: Reload, around: Surroundings) -> int:
    """Run one worker of several and give its exit status, see ``live``."""
    output = set_up_logging(config.server.log_level, config.worker.name)
    manager = ServiceManager.take()
    around = replace(around, restarts=around.front is not None or manager.is_there)
    return uvloop.run(
        live(
            lambda on_stop: running_worker(config, data_dir, around, output, on_stop),
            manager=manager,
            output=output,
            reload=reload,
            ready=lambda: None,
        )
    )


def receive_plan(front: socket.socket) -> Plan:
    """Wait for what the parent has planned for this worker.

    Raises StartError when there is no parent, or one of another release.
    """
    front.settimeout(_PLAN_TIMEOUT_S)
    try:
        message, _ = front_protocol.receive(front)
    except TimeoutError:
        message = None
    except msgspec.MsgspecError as error:
        raise StartError(
            f"`ranvier up` is of another release than its workers: restart it ({error})"
        ) from error
    if not isinstance(message, Plan):
        raise StartError("--front-fd is for workers that `ranvier up` starts")
    front.setblocking(False)
    return message


async def live(
    start: Start,
    *,
    manager: ServiceManager,
    output: LogOutput,
    reload: Reload,
    ready: Callable[[], None],
) -> int:
    """Run a worker until SIGTERM or SIGINT, then drain and stop it; at SIGHUP read its configuration again.

    Gives the exit status. ``ready`` is called when it answers. Raises ``StartError`` and what the parts
    raise, alone or in a group; a part that fails later ends it in the same way.
    """
    stop, reread = asyncio.Event(), asyncio.Event()
    starting = True
    main = asyncio.current_task()
    assert main is not None

    def on_stop() -> None:
        # A start may wait long (for a database, for its recovery) and has nothing to finish.
        if starting and not stop.is_set():
            main.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_stop)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    for signum in (signal.SIGTTIN, signal.SIGTTOU):  # those of `ranvier up --workers`
        signal.signal(signum, signal.SIG_IGN)  # else the kernel would stop this process
    try:
        async with output.gathering(), start(on_stop) as worker:
            starting = False
            ready()
            manager.ready(worker.description)
            logger.info("Ready")
            await _until_stopped(worker, manager, reload, stop, reread)
            manager.stopping()
            logger.info("Draining")
        return RESTARTING if worker.is_restarting else os.EX_OK
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        logger.info("Stopped before it was ready")
        return os.EX_OK


async def _until_stopped(
    worker: RunningWorker,
    manager: ServiceManager,
    reload: Reload,
    stop: asyncio.Event,
    reread: asyncio.Event,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(manager.watchdog())
        reloading = tasks.create_task(_reload_when_asked(worker, manager, reload, reread))
        await stop.wait()
        beating.cancel()
        reloading.cancel()


async def _reload_when_asked(
    worker: RunningWorker, manager: ServiceManager, reload: Reload, reread: asyncio.Event
) -> None:
    while True:
        await reread.wait()
        reread.clear()
        manager.reloading()
        await read_configuration(reload, worker.apply)
        manager.ready(worker.description)


async def read_configuration(reload: Reload, apply: Callable[[Config], None]) -> None:
    """Read the configuration again and take it over; what is wrong is logged, and the old one stays.

    ``apply`` may raise as ``reload`` does.
    """
    try:
        apply(await asyncio.to_thread(reload))
        logger.info("Read the configuration again")
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)
        logger.error("The new configuration is not good; the old one stays")
    except (OSError, StartError) as error:
        logger.error("The new configuration cannot be used: %s; the old one stays", error)
    except Exception:
        # Whatever was overlooked in reading: it must not end what serves.
        logger.exception("The new configuration cannot be read; the old one stays")
