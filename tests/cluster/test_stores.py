"""What people are told of PostgreSQL and Redis."""

from __future__ import annotations

from dataclasses import replace

from ranvier.cli.status import _store_line
from ranvier.cluster.stores import describe_redis
from tests.redis import private_redis


async def test_a_redis_that_keeps_its_figures_to_itself_is_reachable() -> None:
    """``ranvier status`` and the page would say for ever that Redis is away, while every worker hears it."""
    async with private_redis() as redis:
        rules = ("on", ">secret", "allkeys", "allchannels", "+@all", "-@dangerous")
        await redis.ask("ACL", "SETUSER", "limited", *rules)
        limited = replace(redis.config, username="limited", password="secret")
        found = await describe_redis(limited, 0)
        assert found == {"reachable": True}
        assert str(_store_line("Redis", found)) == "Redis: reachable"
        assert (await describe_redis(redis.config, 0))["clients"] > 0
        assert not (await describe_redis(replace(limited, password="wrong"), 0))["reachable"]
