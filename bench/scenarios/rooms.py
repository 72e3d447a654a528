"""Creating rooms and joining them."""

from __future__ import annotations

from bench.scenarios.base import Bench
from bench.world import SMALL_ROOMS, USERS, small_room_members


async def create_room(bench: Bench) -> None:
    """Create the small rooms and the big one, and then some that nobody else enters."""
    world = bench.world
    rooms: list[str] = []
    with bench.meter.measure("create_room") as recording:
        for number in bench.pace.budget(2 * SMALL_ROOMS, 3, at_most=200):
            member = small_room_members(number)[0] if number < SMALL_ROOMS else number % USERS
            creator = world.users[0 if number == SMALL_ROOMS else member]
            rooms.append(await recording.time(creator.create_room(f"Room {number}")))
            world.entered(creator, rooms[-1])
    while len(rooms) <= SMALL_ROOMS:
        creator = world.users[0 if len(rooms) == SMALL_ROOMS else small_room_members(len(rooms))[0]]
        rooms.append(await creator.create_room(f"Room {len(rooms)}"))
        world.entered(creator, rooms[-1])
    world.small_rooms, world.big_room = rooms[:SMALL_ROOMS], rooms[SMALL_ROOMS]


async def join(bench: Bench) -> None:
    """Fill the rooms, one join after another: 20 rooms of 5 and one of 50."""
    world = bench.world
    with bench.meter.measure("join") as recording:
        for room, room_id in enumerate(world.small_rooms):
            for member in small_room_members(room)[1:]:
                await recording.time(world.users[member].join(room_id))
                world.entered(world.users[member], room_id)
        for user in world.users[1:]:
            await recording.time(user.join(world.big_room))
            world.entered(user, world.big_room)
