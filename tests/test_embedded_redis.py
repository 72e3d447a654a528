"""The embedded Redis: private, gone with the server, and back when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable
from ranvier.processes import redis as redis_server
from ranvier.processes import redis_program
from ranvier.processes.embedded import works_in
from ranvier.processes.redis import EmbeddedRedis, RedisError
from ranvier.processes.redis_program import NoRedisError, choose_redis
from tests.postgres import private_folder
from tests.redis import until

START_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
from ranvier.processes.redis import EmbeddedRedis
redis = EmbeddedRedis(Path(sys.argv[1]))
asyncio.run(redis.start())
print(redis.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that only its owner may enter."""
    with private_folder() as path:
        path.chmod(0o700)
        yield path


async def ask(config: RedisConfig, *words: str) -> Any:
    """Send one command."""
    connection = await RedisConnection.open(config)
    try:
        return await connection.command(*words)
    finally:
        connection.close()


async def test_it_is_private_and_keeps_nothing(folder: Path) -> None:
    """Others on the machine or the network could read along; or a stopped server would leave it running."""
    redis = EmbeddedRedis(folder)
    config = await redis.start()
    pid = redis.pid
    assert pid is not None
    try:
        assert config.path is not None
        assert stat.S_IMODE(config.path.stat().st_mode) == 0o770
        assert stat.S_IMODE(config.path.parent.stat().st_mode) == 0o700
        assert (await ask(config, "CONFIG", "GET", "port"))[1] == b"0"
        assert (await ask(config, "CONFIG", "GET", "save"))[1] == b""
        assert (await ask(config, "CONFIG", "GET", "appendonly"))[1] == b"no"
        assert Path(f"/proc/{pid}").stat().st_uid != 0
        await ask(config, "SET", "kept", "no")
    finally:
        await redis.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RedisUnavailable):
        await ask(config, "PING")
    again = await redis.start()
    assert await ask(again, "GET", "kept") is None
    await redis.stop()


async def test_a_killed_redis_is_started_again(folder: Path) -> None:
    """Once the system had killed Redis for want of memory, typing and presence would be gone for ever."""
    redis = EmbeddedRedis(folder)
    config = await redis.start()
    supervisor = asyncio.create_task(redis.supervise())
    try:
        first = redis.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: redis.pid != first)
        await until(redis._answers)
        assert await ask(config, "ECHO", "x") == b"x"
    finally:
        await redis.stop()
    await supervisor


async def test_a_redis_that_cannot_be_started_again_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that dies while the disk is full would take the whole server with it, which needs none."""
    monkeypatch.setattr(redis_server, "RESTART_PAUSE_S", 0.1)
    caplog.set_level("INFO")
    redis = EmbeddedRedis(folder)
    config = await redis.start()
    supervisor = asyncio.create_task(redis.supervise())
    in_the_way = folder / "redis" / "redis.pid.new"
    in_the_way.mkdir()
    try:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGKILL)
        await until(lambda: caplog.text.count("Is a directory") > 1)
        in_the_way.rmdir()
        await until(lambda: "runs again" in caplog.text)
        assert await ask(config, "ECHO", "x") == b"x"
    finally:
        await redis.stop()
    await supervisor


async def test_a_killed_server_is_followed_by_one_that_recovers_by_itself(folder: Path) -> None:
    """After a crash an administrator would have to find and stop the old Redis by hand."""
    killed = subprocess.run(
        [sys.executable, "-c", START_AND_DIE, folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    orphan = int(killed.stdout)
    assert works_in(orphan, folder / "redis")
    redis = EmbeddedRedis(folder)
    try:
        assert await ask(await redis.start(), "ECHO", "x") == b"x"
        assert redis.pid != orphan
        assert not works_in(orphan, folder / "redis")
    finally:
        await redis.stop()


async def test_two_servers_do_not_share_a_data_folder(folder: Path) -> None:
    """A second start by mistake would stop the first server's Redis under its feet."""
    redis = EmbeddedRedis(folder)
    config = await redis.start()
    try:
        with pytest.raises(RedisError, match="in use by another"):
            await EmbeddedRedis(folder).start()
        assert await ask(config, "ECHO", "x") == b"x"
    finally:
        await redis.stop()


async def test_a_long_path_gets_a_short_socket_that_is_removed_again(folder: Path) -> None:
    """A server in a deep folder would not start, because a socket's path is at most 107 bytes long."""
    redis = EmbeddedRedis(folder / ("d" * 120))
    config = await redis.start()
    try:
        assert await ask(config, "ECHO", "x") == b"x"
        first = redis.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert redis._process is not None
        redis._process.wait()
        redis._restart()
        assert await ask(config, "ECHO", "x") == b"x"
    finally:
        await redis.stop()
    assert config.path is not None
    assert not config.path.parent.exists()


async def test_a_redis_that_does_not_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator would be told that Redis does not run, and not why."""
    monkeypatch.setitem(EmbeddedRedis._start.__globals__["SETTINGS"], "maxmemory", "lots")
    with pytest.raises(RedisError, match="maxmemory"):
        await EmbeddedRedis(folder).start()


def test_the_systems_redis_comes_first_and_the_wheels_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Security updates of the system's Redis would not reach the server; or none would be found."""
    monkeypatch.setattr(redis_program, "_SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_redis().path.name == "valkey-server"
    system = tmp_path / "redis-server"
    for version, chosen in (("5.0.9", "valkey-server"), ("7.0.15", "redis-server")):
        system.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
        system.chmod(0o755)
        assert choose_redis().path.name == chosen
    system.unlink()
    monkeypatch.setattr(redis_program.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoRedisError, match="redis-server"):
        choose_redis()
