"""Reading: initial sync, history, room state, whoami; one request after another."""

from __future__ import annotations

from urllib.parse import quote

import orjson

from bench.client import V3, check
from bench.scenarios.base import Bench
from bench.world import USERS, small_room_members

_SMALLEST_STATE = 6  # create, creator's membership, power levels, join rules, history visibility, name


async def initial_sync(bench: Bench) -> None:
    """Sync from nothing, user after user, with the usual ten events per room."""
    world = bench.world
    with bench.meter.measure("initial_sync") as recording:
        for number in bench.pace.budget(USERS, 4, at_most=1000):
            user = world.users[number % USERS]
            # A server may answer an equal request from a cache: each round has a filter of its own.
            limits = orjson.dumps(
                {"room": {"timeline": {"limit": 10}, "state": {"limit": 1000 + number // USERS}}}
            )
            answer = await recording.time(user.sync(f"timeout=0&filter={quote(limits)}"))
            joined = answer["rooms"]["join"]
            check(set(joined) == world.rooms_of[user.user_id], f"{user.name} has other rooms than it joined")
            big = joined[world.big_room]
            check(0 < len(big["timeline"]["events"]) <= 10, "wrong number of events in an initial sync")


async def messages(bench: Bench) -> None:
    """Read the newest 50 events of the big room, user after user."""
    world = bench.world
    await world.top_up(60)
    with bench.meter.measure("messages") as recording:
        for number in bench.pace.budget(100, 3):
            page = await recording.time(world.users[number % USERS].messages(world.big_room, 50))
            check(len(page["chunk"]) == 50, f"{len(page['chunk'])} events in a page of 50")


async def state_of_small_room(bench: Bench) -> None:
    """Read the state of the rooms of 5."""
    world = bench.world
    with bench.meter.measure("state") as recording:
        for number in bench.pace.budget(100, 3):
            room = number % len(world.small_rooms)
            user = world.users[small_room_members(room)[number % 5]]
            state = await recording.time(user.state(world.small_rooms[room]))
            _check_state(state, 5)


async def state_of_big_room(bench: Bench) -> None:
    """Read the state of the room of 50."""
    world = bench.world
    with bench.meter.measure("state_big") as recording:
        for number in bench.pace.budget(100, 3):
            state = await recording.time(world.users[number % USERS].state(world.big_room))
            _check_state(state, 50)


async def whoami(bench: Bench) -> None:
    """Ask who the access token belongs to, user after user."""
    world = bench.world
    with bench.meter.measure("whoami") as recording:
        for number in bench.pace.budget(300, 3):
            user = world.users[number % USERS]
            answer = await recording.time(user.call("GET", f"{V3}/account/whoami"))
            check(answer["user_id"] == user.user_id, "whoami names another user")


def _check_state(state: list[dict[str, object]], members: int) -> None:
    found = sum(event["type"] == "m.room.member" for event in state)
    check(found == members, f"{found} members in the state of a room of {members}")
    check(len(state) >= members - 1 + _SMALLEST_STATE, f"only {len(state)} events in a room's state")
