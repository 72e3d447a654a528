"""Does Redis answer where it should, and only there?"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from typing import Any, Final

from ranvier.config.database import RedisConfig
from ranvier.deploy.clocks import check_clock
from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.scene import Scene
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable, address

OLDEST: Final = (6, 0)
TCP_PORT: Final = 6379
_LOGIN_ERRORS: Final = ("WRONGPASS", "NOAUTH", "AUTH", "invalid password", "NOPERM")


async def check_redis(scene: Scene) -> AsyncIterator[Finding]:
    """Look at Redis from outside and ask it about itself."""
    config = scene.redis
    if config is None:
        return
    async for finding in _file(scene, config):
        yield finding
    try:
        connection = await RedisConnection.open(config)
    except RedisUnavailable as failed:
        yield _unavailable(str(failed), config)
        return
    try:
        yield ok("redis", f"Redis answers at {address(config)}")
        async for finding in _ask(scene, config, connection):
            yield finding
    except RedisUnavailable as failed:
        yield error("redis-answers", f"Redis does not answer as it should: {failed}", "see its log")
    finally:
        connection.close()


def _unavailable(reason: str, config: RedisConfig) -> Finding:
    if any(word in reason for word in _LOGIN_ERRORS):
        return error(
            "redis-password",
            f"Redis refuses the password: {reason}",
            "set redis.password (or password_path) to what Redis has as requirepass",
        )
    start = "systemctl start redis-server, and see its log"
    return error("redis-down", f"Redis is not there: {reason}", start)


async def _file(scene: Scene, config: RedisConfig) -> AsyncIterator[Finding]:
    if config.path is None:
        yield note(
            "redis-tcp",
            f"Redis is reached by TCP at {config.host}:{config.port}",
            "on one machine a UNIX socket (redis.path) is faster and closed to others",
        )
        return
    try:
        status = config.path.stat()
    except OSError:
        return  # connecting says it better
    if status.st_mode & 0o007:
        mode = stat.S_IMODE(status.st_mode)
        yield warning(
            "redis-socket-mode",
            f"every user may use Redis's socket {config.path} (mode {mode:04o})",
            "set `unixsocketperm 770` for Redis and restart it",
        )
    settings = scene.settings
    if settings is not None and config.path.parent == settings.socket_dir:
        group = scene.target.group_name(status.st_gid)
        if group != settings.group:
            yield error(
                "redis-socket-group",
                f"{config.path} has the group {group} and not {settings.group}",
                f"chmod 2770 {settings.socket_dir}, then restart Redis",
            )


async def _ask(scene: Scene, config: RedisConfig, connection: RedisConnection) -> AsyncIterator[Finding]:
    before_ms = scene.now_ms()
    seconds, micros = await connection.command("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    for finding in check_clock("Redis", now_ms, before_ms, scene.now_ms()):
        yield finding
    about = await connection.command("INFO", "server")
    version = _value(about, "redis_version")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        yield error("redis-version", f"Redis {version} is too old", "install Redis 6 or newer, or Valkey")
    if config.path is None:
        return
    port = await _setting(connection, "port")
    if port not in ("0", ""):
        yield error(
            "redis-tcp-open",
            f"Redis answers on TCP port {port}, too, where every program of this machine can reach it",
            "set `port 0` at the end of its configuration and restart it",
        )
    elif await _answers_on_tcp(TCP_PORT):
        yield warning(
            "redis-tcp-open",
            f"another Redis answers on TCP port {TCP_PORT}",
            "stop it if nothing else of this machine uses it",
        )
    policy = await _setting(connection, "maxmemory-policy")
    if policy not in ("noeviction", "") and await _setting(connection, "maxmemory") != "0":
        yield warning(
            "redis-eviction",
            f"Redis may forget workers when its memory is full (maxmemory-policy {policy})",
            "set `maxmemory-policy noeviction`",
        )


async def _setting(connection: RedisConnection, name: str) -> str:
    """Give one setting of Redis; empty where it does not tell."""
    try:
        pair: list[bytes] = await connection.command("CONFIG", "GET", name)
    except RedisUnavailable:
        if not connection.is_open:
            raise
        return ""
    return pair[1].decode() if len(pair) == 2 else ""


async def _answers_on_tcp(port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PING\r\n")
            said = await reader.read(16)
            writer.close()
    except (OSError, TimeoutError):
        return False
    return said.startswith((b"+PONG", b"-NOAUTH", b"-DENIED"))


def _value(about: Any, key: str) -> str:
    for line in bytes(about).decode(errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return line.partition(":")[2].strip()
    return ""
