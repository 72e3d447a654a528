"""The things that people do in a large room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from bench.client import V3, Client, check
from bench.stalls.world import LAZY, World, slices, together

_LAZY_EVENTS = quote('{"lazy_load_members":true}')
_PARKED = 200


async def _get(world: World, rest: str, user: int = 1) -> dict[str, object]:
    return await world.users[user].call("GET", world.path(rest))


async def cold_load(world: World) -> None:
    """Read one piece of state of a room that is not in memory."""
    await _get(world, "state/m.room.create/")


async def initial_sync(world: World) -> None:
    """Sync from the beginning, with every member."""
    answer = await world.users[1].sync("timeout=0")
    room = answer["rooms"]["join"][world.large]
    check(len(room["state"]["events"]) >= world.members - 200, "members are missing in the initial sync")


async def initial_sync_lazy(world: World) -> None:
    """Sync from the beginning as most clients do."""
    await world.users[1].sync(f"timeout=0&filter={LAZY}")


async def initial_syncs_of_many(world: World) -> None:
    """Have sixteen users sync from the beginning at once, lazily."""
    await together(user.sync(f"timeout=0&filter={LAZY}") for user in world.users[20:36])


async def full_state(world: World) -> None:
    """Sync with `full_state` from a token of now."""
    since = (await world.users[1].sync(f"timeout=0&filter={LAZY}"))["next_batch"]
    await world.users[1].sync(f"timeout=0&full_state=true&since={since}")


async def old_token(world: World) -> None:
    """Sync from a token of long ago, which only the database can answer."""
    await world.users[1].sync("timeout=0&since=s5_0")


async def members(world: World) -> None:
    """Ask for all member events."""
    answer = await _get(world, "members")
    check(len(answer["chunk"]) >= world.members, "members are missing")  # type: ignore[arg-type]


async def members_at(world: World) -> None:
    """Ask for the member events of some time ago."""
    start = (await world.users[1].messages(world.large, 50))["end"]
    await _get(world, f"members?at={start}&membership=join")


async def joined_members(world: World) -> None:
    """Ask who is joined."""
    await _get(world, "joined_members")


async def state(world: World) -> None:
    """Ask for the whole state."""
    await world.users[1].state(world.large)


async def messages(world: World) -> None:
    """Read a thousand events of history, lazily."""
    page = await _get(world, f"messages?dir=b&limit=1000&filter={_LAZY_EVENTS}")
    check(len(page["chunk"]) == 1000, "messages are missing")  # type: ignore[arg-type]


async def context(world: World) -> None:
    """Ask for what was around an older event, with the state there."""
    page = await world.users[1].messages(world.large, 200)
    event_id = quote(page["chunk"][-1]["event_id"], safe="")
    await _get(world, f"context/{event_id}?limit=50")


async def join(world: World) -> None:
    """Join the room, ten users one after another."""
    for guest in world.guests[:10]:
        await guest.join(world.large)


async def first_sync_after_join(world: World) -> None:
    """Sync incrementally over a join: the room with all its members is new to the client."""
    guest = world.guests[10]
    since = (await guest.sync("timeout=0"))["next_batch"]
    await guest.join(world.large)
    await guest.sync(f"timeout=0&since={since}")


async def leave(world: World) -> None:
    """Leave the room, five users one after another."""
    for guest in world.guests[:5]:
        await guest.call("POST", world.path("leave"), {})


async def kick(world: World) -> None:
    """Kick five users."""
    for guest in world.guests[5:10]:
        await world.users[0].call("POST", world.path("kick"), {"user_id": guest.user_id})


async def invite(world: World) -> None:
    """Invite five users."""
    for guest in world.guests[11:16]:
        await world.users[0].call("POST", world.path("invite"), {"user_id": guest.user_id})


async def send_large(world: World) -> None:
    """Send 400 messages by sixteen clients into the large room."""
    await _send(world, world.large)


async def send_small(world: World) -> None:
    """Send 400 messages by sixteen clients into a room of sixteen."""
    await _send(world, world.small)


async def power_levels(world: World) -> None:
    """Change the power levels five times."""
    levels = await _get(world, "state/m.room.power_levels/", 0)
    for number in range(5):
        changed = {**levels, "events": {"org.example": 50 + number}}
        await world.users[0].call("PUT", world.path("state/m.room.power_levels"), changed)


async def typing(world: World) -> None:
    """Say that 200 users type."""
    for user in world.users[:200]:
        path = world.path(f"typing/{quote(user.user_id, safe='')}")
        await user.call("PUT", path, {"typing": True, "timeout": 10000})


async def receipts(world: World) -> None:
    """Have a thousand users read the newest message, and one sync from the beginning."""
    newest = (await world.users[0].messages(world.large, 1))["chunk"][0]["event_id"]
    path = world.path(f"receipt/m.read/{quote(newest, safe='')}")
    await slices(world.users[:1000], lambda user: user.call("POST", path, {}))
    await world.users[1].sync(f"timeout=0&filter={LAZY}")


async def parked(world: World) -> None:
    """Send one message that 200 long-polls are told of."""
    await _waking(world, world.users[:_PARKED], world.users[300].send(world.large, "awake"))


async def device_change(world: World) -> None:
    """Have a thousand users wait, and one change the keys of a device."""
    user = world.users[1100]
    device_id = (await user.call("GET", f"{V3}/account/whoami"))["device_id"]
    await _waking(world, world.users[:1000], user.call("POST", f"{V3}/keys/upload", _keys(user, device_id)))


async def keys_query(world: World) -> None:
    """Ask for the keys of a thousand users."""
    wanted: dict[str, list[str]] = {user.user_id: [] for user in world.users[:1000]}
    await world.users[1].call("POST", f"{V3}/keys/query", {"device_keys": wanted})


async def keys_changes(world: World) -> None:
    """Ask whose keys changed since long ago."""
    now = (await world.users[1].sync(f"timeout=0&filter={LAZY}"))["next_batch"]
    await world.users[1].call("GET", f"{V3}/keys/changes?from=s5_0&to={now}")


async def profile_change(world: World) -> None:
    """Change the name of a user who is in 300 rooms and the large one."""
    user = world.users[0]
    await user.call(
        "PUT", f"{V3}/profile/{quote(user.user_id, safe='')}/displayname", {"displayname": "Renamed"}
    )
    await asyncio.sleep(2)  # it reaches the rooms by and by


async def upgrade(world: World) -> None:
    """Upgrade the room."""
    await world.users[0].call("POST", world.path("upgrade"), {"new_version": "11"})


Thing = Callable[[World], Awaitable[None]]
PREPARED: dict[Thing, int] = {parked: _PARKED, device_change: 1000}
"""How many users need a token before a thing is measured."""
THINGS: tuple[Thing, ...] = (
    cold_load,
    initial_sync_lazy,
    initial_sync,
    initial_syncs_of_many,
    full_state,
    old_token,
    members,
    members_at,
    joined_members,
    state,
    messages,
    context,
    join,
    first_sync_after_join,
    leave,
    kick,
    invite,
    send_large,
    send_small,
    power_levels,
    typing,
    receipts,
    parked,
    device_change,
    keys_query,
    keys_changes,
    profile_change,
    upgrade,
)


async def _send(world: World, room_id: str) -> None:
    async def talk(user: Client) -> None:
        for number in range(25):
            await user.send(room_id, f"message {number}")

    await together(talk(user) for user in world.users[:16])


async def _waking(world: World, users: list[Client], change: Awaitable[object]) -> None:
    waits = []
    for number, user in enumerate(users):
        since = world.tokens[user.user_id]
        waits.append(asyncio.create_task(user.sync(f"timeout=60000&since={since}&filter={LAZY}")))
        if number % 20 == 0:
            await asyncio.sleep(0.02)  # as many clients do not ask in the same millisecond
    await asyncio.sleep(1)
    await change
    await together(waits)


def _keys(user: Client, device_id: str) -> dict[str, object]:
    names = {f"curve25519:{device_id}": "A" * 43, f"ed25519:{device_id}": "B" * 43}
    return {
        "device_keys": {
            "user_id": user.user_id,
            "device_id": device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": names,
            "signatures": {user.user_id: {f"ed25519:{device_id}": "C" * 86}},
        }
    }
