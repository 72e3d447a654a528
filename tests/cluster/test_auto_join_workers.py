"""Rooms that new users are joined to, on a server of several workers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.postgres import private_folder
from tests.server.administrator import options, ranvier
from tests.server.process import SERVER_NAME

LOBBY = f"#lobby:{SERVER_NAME}"


async def until_members(client: HoppingClient, room_id: str, names: set[str]) -> None:
    """Wait until these users, and nobody else, are in a room."""
    wanted = {f"@{name}:{SERVER_NAME}" for name in names}
    async with asyncio.timeout(30):
        while set((await client.get(f"/v3/rooms/{room_id}/joined_members"))["joined"]) != wanted:
            await asyncio.sleep(0.05)


async def the_room_of(client: HoppingClient) -> str:
    """Wait until a user is in a room and give it."""
    async with asyncio.timeout(30):
        while not (rooms := (await client.get("/v3/joined_rooms"))["joined_rooms"]):
            await asyncio.sleep(0.05)
    (room_id,) = rooms
    return str(room_id)


async def test_many_who_come_at_once_come_into_one_room() -> None:
    """Each worker would make a lobby of its own, or users would be lost when a server is killed."""
    settings = {"auto_join_rooms": [LOBBY]}
    async with AsyncExitStack() as stack:
        server = ClusterProcess(stack.enter_context(private_folder()), 3, settings)
        stack.push_async_callback(server.stop)
        await server.start()
        sockets = [server.worker_socket(f"worker{number}") for number in (1, 2, 3)]
        clients = [HoppingClient(sockets, seed=number) for number in range(12)]
        for client in clients:
            stack.push_async_callback(client.close)
        names = [f"user-{number}" for number in range(12)]
        await asyncio.gather(*(c.register(name) for c, name in zip(clients, names, strict=True)))
        rooms = {await the_room_of(client) for client in clients}
        assert len(rooms) == 1
        room_id = rooms.pop()
        await until_members(clients[0], room_id, set(names))
        made = await ranvier("register-user", "root", "--password", "a long password", *options(server))
        assert made.status == 0, made.output
        await until_members(clients[0], room_id, {*names, "root"})
        late = HoppingClient(sockets)
        stack.push_async_callback(late.close)
        await late.register("late")
        server.kill()
        await server.start()
        await until_members(clients[0], room_id, {*names, "root", "late"})
