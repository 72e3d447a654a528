"""Registering."""

from __future__ import annotations

from bench.client import Client
from bench.scenarios.base import Bench
from bench.world import USERS


async def register(bench: Bench) -> None:
    """Register the world's users one after another, and then some more that only make the figure stable."""
    world = bench.world
    with bench.meter.measure("register") as recording:
        for number in bench.pace.budget(USERS, 4, at_most=300):
            user = Client(world.host, world.port, f"{world.user_prefix}{number}")
            await recording.time(user.register(f"correct horse {number}"))
            world.users.append(user)
    for user in world.users[USERS:]:
        user.connection.close()
    while len(world.users) < USERS:
        user = Client(world.host, world.port, f"{world.user_prefix}{len(world.users)}")
        await user.register("correct horse")
        world.users.append(user)
    del world.users[USERS:]


async def register_with_default_hash(bench: Bench) -> None:
    """Register a few more users on a server that hashes passwords at its default price."""
    with bench.meter.measure("register_default_hash") as recording:
        for number in bench.pace.budget(10, 3, at_most=50):
            user = Client(bench.world.host, bench.world.port, f"late{number}")
            await recording.time(user.register(f"battery staple {number}"))
            user.connection.close()
