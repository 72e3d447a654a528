"""`python -m bench.stalls`: how long one piece of work in a large room keeps everybody else waiting.

It runs under Ranvier's own interpreter, seeds a room of many members, does in it what people do, and prints
for each thing how late the event loop came to what was due (from `/metrics`), the CPU time and the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import asyncpg

from bench.client import V3, Client, check
from bench.http_client import Connection
from bench.seed.plan import Plan, PlannedRoom
from bench.seed.share import run_share
from bench.servers.base import HOST
from bench.servers.ranvier import Ranvier
from ranvier.config.generate import SIGNING_KEY_NAME
from ranvier.processes.postgres import EmbeddedPostgres

_WORK = Path(__file__).resolve().parent / "work"
_LAG = "ranvier_event_loop_lag_seconds"
_BUSY = "ranvier_event_loop_busy_seconds"
_LAZY = quote('{"room":{"state":{"lazy_load_members":true}}}')
_LAZY_EVENTS = quote('{"lazy_load_members":true}')
_ROOMS_OF_ONE = 300
_PARKED = 200


class MeasuredRanvier(Ranvier):
    """A Ranvier that gives its metrics, too."""

    interpreter: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self._data

    def command(self) -> list[str]:
        """Return the `up` command, under a profiler where one was asked for."""
        command = super().command()
        return [*self.interpreter, *command[command.index("up") :]] if self.interpreter else command

    def _settings(self) -> dict[str, object]:
        settings = super()._settings()
        listener = {"port": self.port, "type": "http", "bind_addresses": [HOST]}
        return {**settings, "listeners": [{**listener, "resources": [{"names": ["client", "metrics"]}]}]}


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


@dataclass(frozen=True)
class Measured:
    """What one thing cost: longest stall and longest busy stretch in ms (upper bounds), CPU ms, memory."""

    name: str
    stall_ms: float
    busy_ms: float
    cpu_ms: float
    took_ms: float
    rss_mib: float


# -- what is done ----------------------------------------------------------------------------------------


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
    await world.users[1].sync(f"timeout=0&filter={_LAZY}")


async def initial_syncs_of_many(world: World) -> None:
    """Have sixteen users sync from the beginning at once, lazily."""
    await _together(user.sync(f"timeout=0&filter={_LAZY}") for user in world.users[20:36])


async def full_state(world: World) -> None:
    """Sync with `full_state` from a token of now."""
    since = (await world.users[1].sync(f"timeout=0&filter={_LAZY}"))["next_batch"]
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
    await _slices(world.users[:1000], lambda user: user.call("POST", path, {}))
    await world.users[1].sync(f"timeout=0&filter={_LAZY}")


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
    now = (await world.users[1].sync(f"timeout=0&filter={_LAZY}"))["next_batch"]
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


async def _together(calls: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*calls)


async def _slices(users: list[Client], call: Callable[[Client], Awaitable[object]]) -> None:
    for start in range(0, len(users), 16):
        await _together(call(user) for user in users[start : start + 16])


async def _send(world: World, room_id: str) -> None:
    async def talk(user: Client) -> None:
        for number in range(25):
            await user.send(room_id, f"message {number}")

    await _together(talk(user) for user in world.users[:16])


async def _tokens(world: World, count: int) -> None:
    """Let so many users have a token of now."""

    async def sync(user: Client) -> None:
        world.tokens[user.user_id] = (await user.sync(f"timeout=0&filter={_LAZY}"))["next_batch"]

    await _slices(world.users[:count], sync)


async def _waking(world: World, users: list[Client], change: Awaitable[object]) -> None:
    waits = []
    for number, user in enumerate(users):
        since = world.tokens[user.user_id]
        waits.append(asyncio.create_task(user.sync(f"timeout=60000&since={since}&filter={_LAZY}")))
        if number % 20 == 0:
            await asyncio.sleep(0.02)  # as many clients do not ask in the same millisecond
    await asyncio.sleep(1)
    await change
    await _together(waits)


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


# -- the world -------------------------------------------------------------------------------------------


async def people(world: World, users: int, guests: int) -> None:
    """Register everybody, make a small room of sixteen, and 300 rooms of the first user."""
    everybody = [Client(HOST, world.port, f"user{number}") for number in range(users + guests)]
    await _slices(everybody, lambda user: user.register("a long password"))
    world.users, world.guests = everybody[:users], everybody[users:]
    world.small = await world.users[0].create_room("small")
    for user in world.users[1:16]:
        await user.join(world.small)
    for number in range(_ROOMS_OF_ONE):
        await world.users[0].create_room(f"room {number}")


async def seed_room(data: Path, world: World, messages: int) -> None:
    """Write the large room into the database of a stopped server, as the server would have written it."""
    postgres = EmbeddedPostgres(data)
    dsn = await postgres.start()
    try:
        connection = await asyncpg.connect(dsn)
        async with connection.transaction():
            name = await connection.fetchval("SELECT server_name FROM server")
            before = await connection.fetchval("SELECT pos FROM log_head FOR UPDATE")
            new = tuple(f"@member{number}:{name}" for number in range(world.members - len(world.users)))
            everybody = (*(user.user_id for user in world.users), *new)
            room = PlannedRoom(1, None, everybody, 1.0)
            plan = Plan(name, before, world.members + messages, (room,), new)
            key_line = (data / SIGNING_KEY_NAME).read_text().splitlines()[0]
            context = multiprocessing.get_context("spawn")
            barrier = context.Barrier(1)
            process = context.Process(target=run_share, args=(dsn, key_line, plan, 0, 1, barrier))
            process.start()
            await asyncio.to_thread(process.join)
            check(process.exitcode == 0, "seeding failed")
            accounts = [(user, int(time.time() * 1000)) for user in new]
            columns = ["user_id", "created_ts"]
            await connection.copy_records_to_table("accounts", columns=columns, records=accounts)
            await connection.execute("UPDATE log_head SET pos = pos + $1", plan.events)
        largest = "SELECT room_id FROM rooms ORDER BY room_nid DESC LIMIT 1"
        world.large = await connection.fetchval(largest)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.close()
    finally:
        await postgres.stop()


# -- measuring -------------------------------------------------------------------------------------------


async def _histograms(port: int) -> dict[str, dict[float, float]]:
    connection = Connection(HOST, port)
    text = (await connection.request("GET", "/metrics")).body.decode()
    connection.close()
    found: dict[str, dict[float, float]] = {_LAG: {}, _BUSY: {}}
    for line in text.splitlines():
        name, _, rest = line.partition("_bucket{le=")
        if name in found:
            bound, _, count = rest.partition("} ")
            found[name][float(bound.strip('"'))] = float(count)
    return found


def _longest_ms(before: dict[float, float], after: dict[float, float]) -> float:
    """Return the upper bound of the fullest bucket that anything was added to."""
    bounds = sorted(after)
    grown = [after[bound] - before[bound] for bound in bounds]
    return next((bound for bound, count in zip(bounds, grown, strict=True) if count == grown[-1]), 0.0) * 1000


async def measure(server: MeasuredRanvier, world: World, thing: Thing) -> Measured:
    """Do one thing and say what it cost."""
    await _tokens(world, PREPARED.get(thing, 0))
    await asyncio.sleep(0.3)
    before, cpu, begun = await _histograms(world.port), server.tree().cpu(), time.perf_counter()
    await thing(world)
    took_ms = (time.perf_counter() - begun) * 1000
    after, used = await _histograms(world.port), server.tree().cpu() - cpu
    return Measured(
        thing.__name__,
        _longest_ms(before[_LAG], after[_LAG]),
        _longest_ms(before[_BUSY], after[_BUSY]),
        used.total_ms,
        took_ms,
        server.tree().memory().server_rss,
    )


def _line(it: Measured) -> str:
    figures = (it.stall_ms, it.busy_ms, it.cpu_ms, it.took_ms, it.rss_mib)
    return f"| {it.name:22} | {' | '.join(f'{figure:8.0f}' for figure in figures)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stalls", description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=1200, help="how many of the members have a session")
    parser.add_argument("--messages", type=int, default=5300)
    parser.add_argument("--only", choices=[thing.__name__ for thing in THINGS], action="append", default=[])
    parser.add_argument("--folder", type=Path, help="keep the server's folder here")
    parser.add_argument("--interpreter", nargs="+", default=[], help="instead of `python -m ranvier.cli`")
    return parser.parse_args()


async def _run(server: MeasuredRanvier, arguments: argparse.Namespace) -> None:
    world = World(server.port, members=arguments.members)
    server.start()
    await people(world, arguments.users, 20)
    server.stop()
    await seed_room(server.data, world, arguments.messages)
    server.start()
    for user in (*world.users, *world.guests):
        user.connection = Connection(HOST, world.port)
    print(f"A room of {world.members}: longest stall of the event loop, longest CPU time of it at once (both")
    print("the upper bound of their bucket), CPU of server and PostgreSQL, time to the answer, memory\n")
    print(f"| {'thing':22} | stall ms | busy ms | CPU ms | took ms | RSS MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for thing in THINGS:
        if not arguments.only or thing.__name__ in arguments.only:
            print(_line(await measure(server, world, thing)), flush=True)


def main() -> int:
    """Measure, and clear up."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _WORK.mkdir(exist_ok=True)
    folder = arguments.folder or Path(tempfile.mkdtemp(dir=_WORK))
    folder.mkdir(exist_ok=True, parents=True)
    folder.chmod(0o755)  # PostgreSQL runs as another user when this runs as root, and has to pass
    server = MeasuredRanvier(folder, sys.executable)
    server.interpreter = tuple(arguments.interpreter)
    try:
        asyncio.run(_run(server, arguments))
    finally:
        server.stop()
        if arguments.folder is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
