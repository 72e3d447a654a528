"""The embedded PostgreSQL: a private cluster in the data folder, started and stopped with the server.

Below ``<data folder>/postgres`` lie ``cluster`` (PostgreSQL's own files), ``socket`` (the UNIX socket; there
is no TCP port), ``log`` (a week of logs), ``startup.log`` (what PostgreSQL said before its log was open)
and ``lock`` (held by the process that runs the cluster).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from ranvier.processes.embedded import (
    POLL_INTERVAL_S,
    SUPERVISE_INTERVAL_S,
    FolderInUse,
    folder_in_tmp,
    take_lock,
    try_lock,
    wait_until,
)
from ranvier.processes.postgres_programs import Programs, ProgramsError, choose_programs
from ranvier.processes.postmaster import PostmasterStatus, is_postmaster
from ranvier.processes.unprivileged import PrivilegeError, RunAs, choose_run_as

logger = logging.getLogger(__name__)

USER = DATABASE = "ranvier"
PORT = 5432  # part of the socket's name only

MAX_SOCKET_FOLDER_BYTES = 85
"""A socket's whole path has at most 107 bytes, of which ``/.s.PGSQL.5432.lock`` takes 19."""

SETTINGS: Mapping[str, str] = {
    "shared_buffers": "128MB",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_connections": "60",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "wal_buffers": "16MB",
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "autovacuum": "on",
    "jit": "off",  # compiling costs more than Ranvier's short queries do
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_directory": "../log",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_truncate_on_rotation": "on",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}
"""For a small server; a line of the administrator's in ``postgresql.conf`` goes over them."""

PRIVATE_SETTINGS: Mapping[str, str] = {"listen_addresses": "", "unix_socket_permissions": "0700"}
"""What keeps the cluster private. Given on the command line, so nothing goes over them."""

PROGRAM_TIMEOUT_S = 120.0
RECOVERY_NEWS_S = 30.0
STOP_TIMEOUT_S = 60.0
ORPHAN_TIMEOUT_S = 3.0
IMMEDIATE, FAST = signal.SIGQUIT, signal.SIGINT


class PostgresError(Exception):
    """Say why the embedded PostgreSQL cannot be used; the message is for the administrator."""


class EmbeddedPostgres:
    """A private PostgreSQL below ``data_dir``, run by this process.

    ``settings`` go over ``SETTINGS``.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._home = data_dir.resolve() / "postgres"
        self._cluster = self._home / "cluster"
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket_folder: Path | None = None
        self._stopping = False
        # A thread that starts PostgreSQL goes on when its task is cancelled: whoever stops it waits for it.
        self._changing = threading.RLock()

    @property
    def pid(self) -> int | None:
        """Give the process id of the running postmaster, or ``None``."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Start PostgreSQL, making the cluster the first time, and give the DSN of its database.

        Recovers by itself from a Ranvier or a PostgreSQL that was killed. Raises ``PostgresError``.
        """
        self._stopping = False
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Stop PostgreSQL cleanly and return when it is gone; harmless when it does not run."""
        self._stopping = True
        await asyncio.to_thread(self._stop)

    async def supervise(self) -> None:
        """Start PostgreSQL again whenever it dies, until ``stop`` is called or this task is cancelled.

        Raises ``PostgresError`` when it cannot be started again.
        """
        while not self._stopping:
            await asyncio.sleep(SUPERVISE_INTERVAL_S)
            if not self._stopping and self._process is not None and self._process.poll() is not None:
                await asyncio.to_thread(self._restart)

    def _start(self) -> str:
        with self._changing:
            self._take_lock()
            self._start_locked()
            assert self._socket_folder is not None
            return _dsn(self._socket_folder)

    def _start_locked(self) -> None:
        try:
            with _explained():
                self._stop_orphan()
                programs = _programs_for(self._cluster)
                run_as = self._run_as(programs)
                if not self._cluster.exists():
                    self._make_cluster(programs, run_as)
                self._prepare_folders(run_as)
                self._write_settings(run_as)
                self._run(programs, run_as)
        except BaseException:
            self._stop_locked()
            raise

    def _restart(self) -> None:
        with self._changing:
            if not self._stopping and self._process is not None:
                logger.error(
                    "The embedded PostgreSQL ended (status %s); starting it again", self._process.returncode
                )
                with _explained():
                    programs = _programs_for(self._cluster)
                    self._run(programs, self._run_as(programs))
                if not self._stopping:
                    logger.info("The embedded PostgreSQL runs again")

    def _stop(self) -> None:
        with self._changing:
            self._stop_locked()

    def _stop_locked(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(FAST)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(IMMEDIATE)
                process.wait()
        folder, self._socket_folder = self._socket_folder, None
        if folder is not None and folder.parent != self._home:
            shutil.rmtree(folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            raise PostgresError("the embedded PostgreSQL is already started")
        try:
            self._lock = take_lock(self._home)
        except FolderInUse as error:
            raise PostgresError(str(error)) from error
        except OSError as error:
            raise PostgresError(f"cannot use the data folder {self._home.parent}: {error}") from error

    def _stop_orphan(self) -> None:
        """Stop the PostgreSQL of a Ranvier that was killed; the lock says that no other Ranvier runs it.

        Stopped and not adopted, so that none of the dead server's statements is still under way, and
        programs and settings are those of this version.
        """
        status = PostmasterStatus.read(self._cluster)
        if status is None:
            return
        if is_postmaster(status.pid, self._cluster):
            for request in (FAST, IMMEDIATE, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(status.pid, request)
                if wait_until(lambda: not is_postmaster(status.pid, self._cluster), ORPHAN_TIMEOUT_S):
                    break
        # PostgreSQL would believe a stale file if its number had gone to another program of the same user.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _run_as(self, programs: Programs) -> RunAs:
        owner = self._cluster.stat().st_uid if self._cluster.exists() else None
        if os.geteuid() not in (0, owner if owner is not None else os.geteuid()):
            raise PostgresError(
                f"{self._cluster} belongs to another user (number {owner}); "
                "start Ranvier as that user or as root"
            )
        return choose_run_as(owner, [programs.path("postgres"), self._home.parent])

    def _make_cluster(self, programs: Programs, run_as: RunAs) -> None:
        """Make the cluster beside its place and move it there, so that a half-made one is never used."""
        run_as.own(self._home)
        fresh = self._home / "cluster.new"
        shutil.rmtree(fresh, ignore_errors=True)
        initdb: list[str | Path] = [programs.path("initdb"), "-D", fresh, "-U", USER, "--auth=trust"]
        self._call(run_as, [*initdb, "--no-locale", "--encoding=UTF8", "--no-instructions"], b"")
        create = f"CREATE DATABASE {DATABASE}\n".encode()
        self._call(run_as, [programs.path("postgres"), "--single", "-D", fresh, "template1"], create)
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude 'ranvier.conf'  # rewritten at each start; put your own settings below\n")
        fresh.rename(self._cluster)

    def _prepare_folders(self, run_as: RunAs) -> None:
        if self._cluster.stat().st_uid != run_as.uid:
            run_as.own_tree(self._cluster)
        run_as.own(self._home)
        folder = self._home / "socket"
        if len(os.fsencode(folder)) > MAX_SOCKET_FOLDER_BYTES:
            folder = folder_in_tmp("ranvier-pg-", folder)
        self._socket_folder = folder
        for path in (folder, self._home / "log"):
            path.mkdir(mode=0o700, exist_ok=True)
            run_as.own(path)

    def _write_settings(self, run_as: RunAs) -> None:
        lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
        path = self._cluster / "ranvier.conf"
        path.write_text("# Written by Ranvier at each start.\n" + "".join(lines))
        path.chmod(0o600)
        run_as.own(path)

    def _run(self, programs: Programs, run_as: RunAs) -> None:
        private = {**PRIVATE_SETTINGS, "unix_socket_directories": str(self._socket_folder), "port": str(PORT)}
        argv: list[str | Path] = [programs.path("postgres"), "-D", self._cluster]
        for name, value in private.items():
            argv += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + PROGRAM_TIMEOUT_S
        while True:
            self._spawn(run_as.command(argv))
            if self._comes_up():
                return
            # The children of a postmaster that was killed may hold its shared memory for a moment.
            if "still in use" not in self._last_words() or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL does not start: {self._last_words()}")
            time.sleep(10 * POLL_INTERVAL_S)

    def _comes_up(self) -> bool:
        """Wait until PostgreSQL is ready, or is to be stopped; False if it ended.

        However long it recovers after a crash: broken off, that would begin anew for ever.
        """
        while not wait_until(self._is_settled, RECOVERY_NEWS_S):
            logger.warning("PostgreSQL is not ready yet: it recovers (see %s)", self._home / "log")
        return self._alive()

    def _spawn(self, command: list[str]) -> None:
        with (self._home / "startup.log").open("wb") as output:
            # Its own session: Ctrl-C in a terminal is for Ranvier, which stops PostgreSQL last.
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _is_settled(self) -> bool:
        status = PostmasterStatus.read(self._cluster)
        ready = status is not None and status.pid == self.pid and status.ready
        return ready or self._stopping or not self._alive()

    def _last_words(self) -> str:
        logs = sorted((self._home / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        words = (self._home / "startup.log").read_text(errors="replace").splitlines()[-3:]
        if logs:
            words += logs[-1].read_text(errors="replace").splitlines()[-2:]
        return "\n".join(words) + f"\n(see {self._home / 'startup.log'} and {self._home / 'log'})"

    def _call(self, run_as: RunAs, argv: list[str | Path], standard_input: bytes) -> None:
        done = subprocess.run(
            run_as.command(argv),
            check=False,
            cwd="/",
            env=_environment(),
            input=standard_input,
            capture_output=True,
            timeout=PROGRAM_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise PostgresError(f"{argv[0]} failed: {done.stderr.decode(errors='replace').strip()}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever may be in the way of a start into a PostgresError."""
    try:
        yield
    except (ProgramsError, PrivilegeError, OSError, subprocess.SubprocessError) as error:
        raise PostgresError(f"cannot start the embedded PostgreSQL: {error}") from error


def running_dsn(data_dir: Path) -> str | None:
    """Give the DSN of the embedded PostgreSQL that another process runs below ``data_dir``, if one does.

    For commands that work beside a running server.
    """
    home = data_dir.resolve() / "postgres"
    try:
        lock = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if try_lock(lock):
            return None
        status = PostmasterStatus.read(home / "cluster")
        if status is None or status.socket_folder is None or not status.ready:
            return None
        return _dsn(status.socket_folder) if is_postmaster(status.pid, home / "cluster") else None
    finally:
        os.close(lock)


def _programs_for(cluster: Path) -> Programs:
    try:
        return choose_programs(int((cluster / "PG_VERSION").read_text()))
    except FileNotFoundError:
        if cluster.exists():
            raise PostgresError(f"{cluster} exists but is not a PostgreSQL data folder") from None
        return choose_programs(None)


def _environment() -> dict[str, str]:
    """Give PostgreSQL none of our variables: PGDATA, PGOPTIONS or a locale would change what it does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _dsn(socket_folder: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(socket_folder), safe='/')}&port={PORT}"
