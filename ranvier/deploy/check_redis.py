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
        yield _unavailable(failed, scene, by_tcp=config.path is not None and await _answers_on_tcp(TCP_PORT))
        return
    try:
        yield ok("redis", f"Redis answers at {address(config)}")
        async for finding in _ask(scene, config, connection):
            yield finding
    except RedisUnavailable as failed:
        yield error("redis-answers", f"Redis does not answer as it should: {failed}", "see its log")
    finally:
        connection.close()


def _unavailable(failed: RedisUnavailable, scene: Scene, *, by_tcp: bool) -> Finding:
    reason, settings = str(failed), scene.settings
    if any(word in reason for word in _LOGIN_ERRORS):
        return error(
            "redis-password",
            f"Redis refuses the password: {reason}",
            "set redis.password (or password_path) to what Redis has as requirepass",
        )
    if isinstance(failed.__cause__, PermissionError):
        group = f" of the group {settings.group}" if settings is not None else ""
        return error(
            "redis-refused",
            f"the server's user may not connect to Redis: {reason}",
            f"set `unixsocketperm 770` for Redis and restart it; its socket and folder have to be{group} "
            "open to that user",
        )
    start = "start Redis" if settings is None else f"systemctl restart {settings.redis_service}"
    if by_tcp:
        reason += (
            f"; one answers on TCP port {TCP_PORT}, where every program of this machine can reach it: "
            "another, or this one that lost its configuration"
        )
        lost = (
            "set its unixsocket, and `port 0`"
            if settings is None
            else "run `ranvier deploy`, which sets both"
        )
        start = f"if it is the same Redis, {lost}; otherwise {start}"
    return error("redis-down", f"Redis is not there: {reason}", f"{start}, and see its log")


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
    time = await _allowed(connection, "TIME")
    if time is not None:
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        for finding in check_clock("Redis", now_ms, before_ms, scene.now_ms()):
            yield finding
    about = await _allowed(connection, "INFO", "server")
    version = _value(about or b"", "redis_version")
    if version and tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        yield error("redis-version", f"Redis {version} is too old", "install Redis 6 or newer, or Valkey")
    policy = await _setting(connection, "maxmemory-policy")
    if policy not in ("noeviction", "") and await _setting(connection, "maxmemory") != "0":
        yield warning(
            "redis-eviction",
            f"Redis may forget workers when its memory is full (maxmemory-policy {policy})",
            "set `maxmemory-policy noeviction`",
        )
    if config.path is not None:
        async for finding in _ports(connection, _value(about or b"", "tcp_port")):
            yield finding


async def _ports(connection: RedisConnection, told: str) -> AsyncIterator[Finding]:
    """See whether Redis, which is used by its socket, answers by TCP as well.

    ``told`` is the port that it tells of where it does not tell its settings; empty where it tells nothing.
    """
    ports = {name: await _setting(connection, name) for name in ("port", "tls-port")}
    if not any(ports.values()):
        ports = {"port": told}
    is_open = {name: port for name, port in ports.items() if port not in ("0", "")}
    for name, port in is_open.items():
        yield error(
            "redis-tcp-open",
            f"Redis answers on TCP port {port}, too, where every program of this machine can reach it",
            f"set `{name} 0` at the end of its configuration and restart it",
        )
    if not is_open and await _answers_on_tcp(TCP_PORT):
        which = "another Redis, which is not used here," if any(ports.values()) else "this Redis or another"
        yield note("redis-other", f"{which} answers on TCP port {TCP_PORT}")


async def _setting(connection: RedisConnection, name: str) -> str:
    """Give one setting of Redis; empty where it does not tell."""
    pair: list[bytes] | None = await _allowed(connection, "CONFIG", "GET", name)
    return pair[1].decode() if pair is not None and len(pair) == 2 else ""


async def _allowed(connection: RedisConnection, *words: str) -> Any:
    """Give the answer to a command that the server itself does without; None where it is forbidden."""
    try:
        return await connection.command(*words)
    except RedisUnavailable:
        if not connection.is_open:
            raise
        return None


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
