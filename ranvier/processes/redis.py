"""The embedded Redis: private, on a UNIX socket only, started and stopped with the server.

Below ``<data folder>/redis`` lie ``redis.sock``, ``redis.log`` (what it said since its start), ``redis.pid``
and ``lock`` (held by the process that runs it). Nothing that it holds is kept: all of it comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from ranvier.config.database import RedisConfig
from ranvier.processes.embedded import (
    SUPERVISE_INTERVAL_S,
    FolderInUse,
    folder_in_tmp,
    take_lock,
    wait_until,
    works_in,
)
from ranvier.processes.redis_program import NoRedisError, RedisProgram, choose_redis
from ranvier.processes.unprivileged import PrivilegeError, choose_run_as

logger = logging.getLogger(__name__)

SETTINGS = {
    "port": "0",
    "unixsocketperm": "770",
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "databases": "1",
    "maxclients": "1000",
    "maxmemory": "256mb",
    # A worker that stands still is let go before its messages fill the memory; it reads the log afterwards.
    "client-output-buffer-limit": "pubsub 64mb 16mb 30",
}
"""``maxmemory`` is only a net: typing and presence of 100 000 keys take a tenth of it."""

MAX_SOCKET_BYTES = 100
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
ORPHAN_TIMEOUT_S = 3.0
RESTART_PAUSE_S = 5.0


class RedisError(Exception):
    """Say why the embedded Redis cannot be used; the message is for the administrator."""


class EmbeddedRedis:
    """A private Redis below ``data_dir``, run by this process; ``program`` is chosen unless it is given."""

    def __init__(self, data_dir: Path, *, program: RedisProgram | None = None) -> None:
        self._home = data_dir.resolve() / "redis"
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket = self._home / "redis.sock"
        self._stopping = False
        # A thread that starts it goes on when its task is cancelled: whoever stops it waits for that.
        self._changing = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Give the process id of the running server, or ``None``."""
        return self._process.pid if self._process else None

    async def start(self) -> RedisConfig:
        """Start it and say where it is. A Ranvier that was killed does no harm. Raises RedisError."""
        self._stopping = False
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Stop it and return when it is gone; harmless when it does not run."""
        self._stopping = True
        await asyncio.to_thread(self._stop)

    async def supervise(self) -> None:
        """Start it again whenever it dies, until ``stop`` is called or this task is cancelled.

        What keeps it from starting is logged, and it is tried again: the server goes on without it.
        """
        while not self._stopping:
            await asyncio.sleep(SUPERVISE_INTERVAL_S)
            if not self._stopping and self._process is not None and self._process.poll() is not None:
                try:
                    await asyncio.to_thread(self._restart)
                except RedisError as error:
                    logger.error("%s; trying again", error)
                    await asyncio.sleep(RESTART_PAUSE_S)

    def _start(self) -> RedisConfig:
        with self._changing:
            if self._lock is not None:
                raise RedisError("the embedded Redis is already started")
            try:
                with _explained():
                    self._lock = take_lock(self._home)
                    self._stop_orphan()
                    self._choose_socket()
                    self._run()
            except BaseException:
                self._stop()
                raise
            return RedisConfig(path=self._socket)

    def _restart(self) -> None:
        with self._changing:
            if not self._stopping and self._process is not None:
                status = self._process.returncode
                logger.error("The embedded Redis ended (status %s); starting it again", status)
                try:
                    with _explained():
                        self._run()
                except BaseException:
                    self._end()
                    raise
                logger.info("The embedded Redis runs again")

    def _stop(self) -> None:
        with self._changing:
            self._end()
            self._process = None
            if self._lock is not None:  # else they are another's
                self._remove_traces()
                os.close(self._lock)
                self._lock = None

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _remove_traces(self) -> None:
        for name in ("redis.pid", "redis.sock"):
            (self._home / name).unlink(missing_ok=True)
        if self._socket.parent != self._home:
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    def _stop_orphan(self) -> None:
        """Stop the Redis of a Ranvier that was killed; the lock says that no other Ranvier runs it."""
        try:
            pid = int((self._home / "redis.pid").read_text())
        except (FileNotFoundError, ValueError):
            return
        for request in (signal.SIGTERM, signal.SIGKILL):
            if not works_in(pid, self._home):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, request)
            wait_until(lambda: not works_in(pid, self._home), ORPHAN_TIMEOUT_S)

    def _run(self) -> None:
        program = self._program or choose_redis()
        run_as = choose_run_as(None, [program.path, self._home.parent], "Redis")
        for folder in (self._home, self._socket.parent):
            run_as.own(folder)
        self._socket.unlink(missing_ok=True)
        argv: list[str | Path] = [program.path, "--dir", self._home, "--unixsocket", self._socket]
        for name, value in SETTINGS.items():
            argv += [f"--{name}", *value.split(" ")]
        with (self._home / "redis.log").open("wb") as output:
            # Its own session: Ctrl-C in a terminal is for Ranvier, which stops Redis last.
            self._process = subprocess.Popen(
                run_as.command(argv),
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._note_pid(self._process.pid)
        if not wait_until(self._ready_or_dead, START_TIMEOUT_S) or self._process.poll() is not None:
            raise RedisError(f"Redis does not start: {self._last_words()}")

    def _note_pid(self, pid: int) -> None:
        """Write down whom to stop if this process is killed; who reads it meanwhile finds a whole number."""
        written = self._home / "redis.pid.new"
        written.write_text(str(pid))
        written.replace(self._home / "redis.pid")

    def _choose_socket(self) -> None:
        self._socket = self._home / "redis.sock"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_BYTES:
            self._socket = folder_in_tmp("ranvier-redis-", self._home) / "redis.sock"

    def _ready_or_dead(self) -> bool:
        return self._answers() or self._process is None or self._process.poll() is not None

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _last_words(self) -> str:
        lines = (self._home / "redis.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:]) + f"\n(see {self._home / 'redis.log'})"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever may be in the way of a start into a RedisError."""
    try:
        yield
    except (FolderInUse, NoRedisError, PrivilegeError, OSError, subprocess.SubprocessError) as error:
        raise RedisError(f"cannot start the embedded Redis: {error}") from error
