"""Redis as an administrator sees it: what the log says of it, and that TLS is what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from ranvier.config.database import RedisConfig
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable
from tests.cluster.services import tcp_port_of
from tests.redis import make_bus, private_redis, running_bus, until
from tests.server.test_listeners_whole import make_certificate


async def test_the_log_says_what_happens_to_redis(caplog: pytest.LogCaptureFixture) -> None:
    """An administrator would look for the one line that says since when messages are slow, and why."""
    caplog.set_level("INFO")
    async with private_redis() as redis:
        where = f"unix:{redis.config.path}"
        async with running_bus(make_bus(redis.config)) as bus:
            assert f"Redis connected: {where}" in caplog.messages
            assert "Redis subscribed: test:log, test:ephemeral, test:tell-now" in caplog.messages
            caplog.clear()
            supervising = asyncio.create_task(redis.server.supervise())
            os.kill(redis.pid, signal.SIGKILL)
            await until(lambda: any(it.startswith("Redis lost: ") for it in caplog.messages))
            await until(lambda: bus.connected)
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)
    about = [it for it in caplog.messages if it.startswith("Redis ") and "embedded" not in it]
    kinds = [it.partition(":")[0].split(" after ")[0] for it in about]
    assert [it for it in kinds if it != "Redis is not available, trying on"] == [
        *("Redis lost", "Redis connected", "Redis subscribed", "Redis is back"),
    ]


async def test_redis_over_tls(tmp_path: Path) -> None:
    """A Redis on another machine could not be used, or by anybody who pretends to be it."""
    await asyncio.to_thread(make_certificate, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with private_redis() as redis:
        assert redis.config.path is not None
        async with tcp_port_of(redis.config.path, context) as port:
            known = RedisConfig(host="localhost", port=port, use_tls=True, ca_file=tmp_path / "cert.pem")
            connection = await RedisConnection.open(known)
            assert await connection.command("PING") == b"PONG"
            connection.close()
            with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
                await RedisConnection.open(RedisConfig(host="localhost", port=port, use_tls=True))
            with pytest.raises(RedisUnavailable, match=r"other\.pem: No such file"):
                await RedisConnection.open(replace(known, ca_file=tmp_path / "other.pem"))
