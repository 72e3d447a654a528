"""The embedded PostgreSQL: started, stopped, killed, and started again by whoever comes next."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ranvier.processes import unprivileged
from ranvier.processes.embedded import folder_in_tmp
from ranvier.processes.postgres import EmbeddedPostgres, PostgresError, running_dsn
from ranvier.processes.postgres_programs import ProgramsError, choose_programs
from tests.postgres import private_folder
from tests.redis import until

START_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
from ranvier.processes.postgres import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
asyncio.run(postgres.start())
print(postgres.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that only its owner may enter, as ``mktemp -d`` and ``/root`` are."""
    with private_folder() as path:
        path.chmod(0o700)
        yield path


async def ask(dsn: str, question: str) -> object:
    """Ask the database one value."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


async def test_what_was_committed_is_there_after_a_restart_and_nothing_runs_between(folder: Path) -> None:
    """Messages would be lost by a restart, or a stopped server would leave PostgreSQL running."""
    postgres = EmbeddedPostgres(folder)
    dsn = await postgres.start()
    await ask(dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    pid = postgres.pid
    await postgres.stop()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await ask(dsn, "SELECT 1")
    assert await ask(await postgres.start(), "SELECT number FROM kept") == 7
    await postgres.stop()


async def test_it_is_private_durable_and_not_roots(folder: Path) -> None:
    """Other users of the machine could read messages, a power cut would lose them, or root would run it."""
    postgres = EmbeddedPostgres(folder)
    dsn = await postgres.start()
    try:
        assert await ask(dsn, "SHOW listen_addresses") == ""
        assert [await ask(dsn, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        assert await ask(dsn, "SHOW server_encoding") == "UTF8"
        assert stat.S_IMODE((folder / "postgres").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "postgres/socket").stat().st_mode) == 0o700
        assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0
    finally:
        await postgres.stop()


async def test_a_killed_server_is_followed_by_one_that_recovers_by_itself(folder: Path) -> None:
    """After a crash an administrator would have to find and stop the old PostgreSQL by hand."""
    killed = subprocess.run(
        [sys.executable, "-c", START_AND_DIE, folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    orphan = int(killed.stdout)
    os.kill(orphan, 0)  # it is still running
    assert running_dsn(folder) is None
    postgres = EmbeddedPostgres(folder)
    try:
        assert await ask(await postgres.start(), "SELECT 1") == 1
        assert postgres.pid != orphan
    finally:
        await postgres.stop()


async def test_a_killed_postgres_is_started_again(folder: Path) -> None:
    """The server would answer 503 for ever once the system had killed PostgreSQL for want of memory."""
    postgres = EmbeddedPostgres(folder)
    dsn = await postgres.start()
    supervisor = asyncio.create_task(postgres.supervise())
    try:
        first = postgres.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while postgres.pid == first or running_dsn(folder) is None:
                await asyncio.sleep(0.05)
        assert await ask(dsn, "SELECT 1") == 1
    finally:
        await postgres.stop()
    await supervisor


async def test_a_postgres_that_cannot_be_started_again_says_why(folder: Path) -> None:
    """An administrator would read a traceback where the disk is full or its programs are gone."""
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    in_the_way = folder / "postgres" / "startup.log"
    in_the_way.unlink()
    in_the_way.mkdir()
    try:
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            with pytest.raises(PostgresError, match=r"cannot start .*Is a directory"):
                await postgres.supervise()
    finally:
        await postgres.stop()


async def test_a_stale_pid_file_that_names_another_program_does_not_stop_the_start(folder: Path) -> None:
    """After a power cut the server would not start if another program had got the old process number."""
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    owner = pwd.getpwuid((folder / "postgres/cluster").stat().st_uid)
    await postgres.stop()
    other = subprocess.Popen(["sleep", "60"], user=owner.pw_uid if os.geteuid() == 0 else None, cwd="/")
    try:
        (folder / "postgres/cluster/postmaster.pid").write_text(f"{other.pid}\n{folder}\n1\n5432\n/tmp\n\n\n")
        assert await ask(await postgres.start(), "SELECT 1") == 1
        assert other.poll() is None
    finally:
        await postgres.stop()
        other.kill()
        other.wait()


async def test_two_servers_do_not_share_a_data_folder(folder: Path) -> None:
    """A second start by mistake would stop the first server's database under its feet."""
    postgres = EmbeddedPostgres(folder)
    dsn = await postgres.start()
    try:
        assert running_dsn(folder) == dsn
        with pytest.raises(PostgresError, match="in use by another"):
            await EmbeddedPostgres(folder).start()
        assert await ask(dsn, "SELECT 1") == 1
    finally:
        await postgres.stop()
    assert running_dsn(folder) is None


async def test_a_long_path_gets_a_short_socket_that_is_removed_again(folder: Path) -> None:
    """A server in a deep folder would not start, because a socket's path is at most 107 bytes long."""
    deep = folder / ("d" * 120)
    postgres = EmbeddedPostgres(deep)
    dsn = await postgres.start()
    sockets = Path(str(await ask(dsn, "SHOW unix_socket_directories")))
    assert sockets.parent == Path("/tmp")
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert running_dsn(deep) == dsn
    await postgres.stop()
    assert not sockets.exists()
    sockets.mkdir()
    left = sockets / "left by one that was killed"
    left.touch()
    assert await postgres.start() == dsn  # who is beside it finds it again
    assert not left.exists()
    await postgres.stop()


def test_a_short_place_that_somebody_else_took_is_left_to_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user of the machine could keep a server from starting for good."""
    first = folder_in_tmp("ranvier-test-", folder)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as it belongs to another user
    second = folder_in_tmp("ranvier-test-", folder)
    assert second != first
    for made in (first, second):
        made.rmdir()


async def test_an_interrupted_first_start_is_begun_anew(folder: Path) -> None:
    """A first start that was killed would leave a data folder that never starts."""
    half = folder / "postgres" / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    postgres = EmbeddedPostgres(folder)
    assert await ask(await postgres.start(), "SELECT 1") == 1
    await postgres.stop()
    assert not half.exists()


async def test_a_folder_that_cannot_be_used_gives_a_sentence(tmp_path: Path) -> None:
    """An administrator would get a traceback instead of the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PostgresError, match="cannot use the data folder"):
        await EmbeddedPostgres(tmp_path / "file" / "data").start()
    (tmp_path / "postgres" / "cluster").mkdir(parents=True)
    with pytest.raises(PostgresError, match="not a PostgreSQL data folder"):
        await EmbeddedPostgres(tmp_path).start()


async def test_an_error_in_the_administrators_settings_is_shown(folder: Path) -> None:
    """The server would just not start, and nobody would know which line to mend."""
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    await postgres.stop()
    with (folder / "postgres/cluster/postgresql.conf").open("a") as conf:
        conf.write("work_mem = 'a lot'\n")
    with pytest.raises(PostgresError, match="work_mem"):
        await postgres.start()
    assert running_dsn(folder) is None


def test_the_clusters_version_decides_which_programs_run_it() -> None:
    """An upgrade of the programs would make the data unreadable without a word."""
    assert choose_programs(choose_programs(None).major).major == choose_programs(None).major
    with pytest.raises(ProgramsError, match="made by PostgreSQL 9, which is not installed"):
        choose_programs(9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_root_gets_told_when_nobody_else_can_run_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root would meet PostgreSQL's own refusal, which does not say what to do."""
    monkeypatch.setattr(unprivileged, "PREFERRED_USERS", ("no-such-user",))
    with pytest.raises(unprivileged.PrivilegeError, match="none of the users"):
        unprivileged.choose_run_as(None, [folder])
    monkeypatch.undo()
    with pytest.raises(unprivileged.PrivilegeError, match="cannot reach"):
        unprivileged.choose_run_as(None, [folder / "missing"])
    # Where every user may enter, no capability is handed out.
    assert "--ambient" not in " ".join(unprivileged.choose_run_as(None, [Path("/usr")]).prefix)
    assert "dac_read_search" in " ".join(unprivileged.choose_run_as(None, [folder]).prefix)


async def test_a_start_that_is_given_up_leaves_nothing_running(folder: Path) -> None:
    """Ctrl-C during the start would leave a PostgreSQL behind, and the data folder in use."""
    postgres = EmbeddedPostgres(folder)
    start = asyncio.create_task(postgres.start())
    await asyncio.sleep(0)  # it has begun
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await postgres.stop()
    assert postgres.pid is None
    assert not (folder / "postgres/cluster/postmaster.pid").exists()
    assert await ask(await postgres.start(), "SELECT 1") == 1
    await postgres.stop()


async def test_a_recovery_may_take_long_and_can_be_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a power cut no start would ever come to its end, each broken off; nor would it hear Ctrl-C."""
    monkeypatch.setattr("ranvier.processes.postgres.RECOVERY_NEWS_S", 0.1)
    postgres = EmbeddedPostgres(folder, settings={"hot_standby": "off"})
    await postgres.start()
    await postgres.stop()
    endless = folder / "postgres/cluster/standby.signal"  # it recovers for as long as this is there
    endless.touch()
    start = asyncio.create_task(postgres.start())
    await until(lambda: caplog.text.count("PostgreSQL is not ready yet") > 2)
    assert not start.done()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    async with asyncio.timeout(30):
        await postgres.stop()
    assert postgres.pid is None
    endless.unlink()
    assert await ask(await postgres.start(), "SELECT 1") == 1
    await postgres.stop()
