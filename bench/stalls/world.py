"""A large room and a small one, and who is in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from bench.client import V3, Client
from bench.servers.base import HOST

LAZY = quote('{"room":{"state":{"lazy_load_members":true}}}')
_ROOMS_OF_ONE = 300


@dataclass
class World:
    """A large room and a small one, with users who are in both, or (`guests`) in neither."""

    port: int
    users: list[Client] = field(default_factory=list)
    guests: list[Client] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    large: str = ""
    small: str = ""
    members: int = 0

    def path(self, rest: str) -> str:
        """Return the path of something of the large room."""
        return f"{V3}/rooms/{quote(self.large, safe='')}/{rest}"


async def people(world: World, users: int, guests: int) -> None:
    """Register everybody, make a small room of sixteen, and 300 rooms of the first user."""
    everybody = [Client(HOST, world.port, f"user{number}") for number in range(users + guests)]
    await slices(everybody, lambda user: user.register("a long password"))
    world.users, world.guests = everybody[:users], everybody[users:]
    world.small = await world.users[0].create_room("small")
    for user in world.users[1:16]:
        await user.join(world.small)
    for number in range(_ROOMS_OF_ONE):
        await world.users[0].create_room(f"room {number}")


async def together(calls: Iterable[Awaitable[object]]) -> None:
    """Do everything at once."""
    await asyncio.gather(*calls)


async def slices(users: list[Client], call: Callable[[Client], Awaitable[object]]) -> None:
    """Do something for each of many users, sixteen at a time."""
    for start in range(0, len(users), 16):
        await together(call(user) for user in users[start : start + 16])


async def tokens(world: World, count: int) -> None:
    """Let so many users have a sync token of now."""

    async def sync(user: Client) -> None:
        world.tokens[user.user_id] = (await user.sync(f"timeout=0&filter={LAZY}"))["next_batch"]

    await slices(world.users[:count], sync)
