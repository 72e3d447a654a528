"""The sync law: a world that grew by increments is the world that a fresh client is shown."""

import json
import secrets
from random import Random

import aiohttp
import pytest

from tests.clients.homeserver import Homeserver
from tests.clients.http_session import HttpSession, register
from tests.clients.sync_actions import Lives
from tests.clients.sync_compare import Mode, differences, stale_members
from tests.clients.sync_model import Json, World

SEEDS = range(6)
ROUNDS = 6
ACTIONS_A_ROUND = 14
# A server may finish something (a push count, a device list) just after its answer; then a sync tells of it.
SETTLING_POLLS = 5
SETTLE_MS = 500

NO_MEMBERS = {"not_types": ["m.room.member"]}
MODES = [
    Mode("plain"),
    Mode("short timelines", {"room": {"timeline": {"limit": 3}}}),
    Mode("state after", {"room": {"timeline": {"limit": 4}}}, state_after=True),
    Mode(
        "lazy members and threads",
        {
            "room": {
                "state": {"lazy_load_members": True},
                "timeline": {"limit": 6, "unread_thread_notifications": True, "lazy_load_members": True},
            }
        },
    ),
    Mode("left rooms", {"room": {"include_leave": True, "timeline": {"limit": 5}}}),
    Mode(
        "filtered",
        {
            "room": {
                "state": NO_MEMBERS,
                "timeline": NO_MEMBERS,
                "ephemeral": {"not_types": ["m.receipt"]},
                "account_data": {"types": ["m.tag"]},
            },
            "account_data": {"not_types": ["m.push_rules"]},
        },
    ),
]


class Follower:
    """One device that follows by increments in its own mode, and another that always starts anew."""

    def __init__(self, chain: HttpSession, fresh: HttpSession, mode: Mode) -> None:
        self.chain = chain
        self.fresh = fresh
        self.mode = mode
        self.world = World()

    async def sync(self, timeout_ms: int = 0, full_state: bool = False) -> None:
        """Follow up to now."""
        self.world.apply(await self._ask(self.chain, self.world.since, timeout_ms, full_state))

    async def ask_without_listening(self) -> None:
        """Have an answer made that never arrives: the next one must say it all again."""
        await self._ask(self.chain, self.world.since, 0, False)

    async def start_anew(self) -> World:
        """See the world as a client that just logged in."""
        world = World()
        world.apply(await self._ask(self.fresh, None, 0, False))
        return world

    async def _ask(self, device: HttpSession, since: str | None, timeout_ms: int, full_state: bool) -> Json:
        query = {
            "filter": json.dumps(self.mode.filter),
            "timeout": str(timeout_ms),
            "set_presence": "offline",
        }
        if since is not None:
            query["since"] = since
        if full_state:
            query["full_state"] = "true"
        if self.mode.state_after:
            query["use_state_after"] = query["org.matrix.msc4222.use_state_after"] = "true"
        return await device.ok("GET", "/sync", **query)

    async def check(self, forgotten: set[str]) -> None:
        """Compare the two worlds; what does not settle is a violation of the law."""
        for _ in range(SETTLING_POLLS):
            fresh = await self.start_anew()
            found = differences(self.world, fresh, self.mode, forgotten)
            if not found:
                return
            await self.sync(timeout_ms=SETTLE_MS)
        raise AssertionError(f"{self.chain.user_id}, {self.mode.name}:\n" + "\n".join(found[:12]))


async def make_users(
    http: aiohttp.ClientSession, homeserver: Homeserver
) -> tuple[list[HttpSession], list[Follower]]:
    """Register five users; two of them are watched in every mode."""
    suffix, password = secrets.token_hex(4), "correct horse"
    users = [await register(http, homeserver, f"law-{letter}-{suffix}", password) for letter in "abcde"]
    followers = [
        Follower(await user.log_in_again(password), await user.log_in_again(password), mode)
        for user in users[:2]
        for mode in MODES
    ]
    return users, followers


def sharing(lives: Lives, user_id: str, rooms: set[str]) -> set[str]:
    """Return who shares one of these rooms with the user."""
    mine = {room for room in rooms if lives.membership.get((room, user_id)) == "join"}
    return {user for (room, user), what in lives.membership.items() if room in mine and what == "join"}


@pytest.mark.parametrize("seed", SEEDS)
async def test_grown_and_fresh_worlds_are_equal(homeserver: Homeserver, seed: int) -> None:
    """A client that was always on shows something else than one that just logged in."""
    await compare_worlds(homeserver, seed)


@pytest.mark.parametrize("seed", SEEDS)
async def test_grown_and_fresh_worlds_are_equal_from_the_database(
    forgetful_homeserver: Homeserver, seed: int
) -> None:
    """A client that was away for long shows something else than one that just logged in."""
    await compare_worlds(forgetful_homeserver, seed)


async def compare_worlds(homeserver: Homeserver, seed: int) -> None:
    """Live random lives and hold what grew by syncing to what a fresh login sees."""
    async with aiohttp.ClientSession() as http:
        users, followers = await make_users(http, homeserver)
        lives = Lives(users, [follower.chain for follower in followers], seed)
        chance = Random(-seed - 1)
        await lives.live(4)
        for follower in followers:
            await follower.sync()
        for _ in range(ROUNDS):
            start = len(lives.log)
            await lives.live(ACTIONS_A_ROUND)
            try:
                for follower in followers:
                    await follow(follower, lives, chance)
            except AssertionError as error:
                error.add_note(f"seed {seed}, rooms {lives.rooms}, this round:")
                error.add_note("\n".join(lives.log[start:]))
                raise
        check_to_device(followers, lives)
        assert lives.done > lives.tried / 3


async def follow(follower: Follower, lives: Lives, chance: Random) -> None:
    """Sync one follower, sometimes late, twice or in full, and hold it to the law."""
    if chance.random() < 0.25:
        return
    if chance.random() < 0.2:
        await follower.ask_without_listening()
    await follower.sync(full_state=chance.random() < 0.15)
    await follower.check(lives.forgotten[follower.chain.user_id])
    if follower.mode.lazy:
        truth = Follower(follower.chain, follower.fresh, MODES[0])
        assert stale_members(follower.world, await truth.start_anew()) == []


def check_to_device(followers: list[Follower], lives: Lives) -> None:
    """Insist that each device got each of its messages once and in order, as far as it has synced."""
    for follower in followers:
        got = [event["content"]["number"] for event in follower.world.to_device]
        sent = lives.sent_to_device[follower.chain.device_id]
        assert got == sent[: len(got)]


@pytest.mark.parametrize("seed", [101, 102])
async def test_device_lists_follow_who_shares_an_encrypted_room(homeserver: Homeserver, seed: int) -> None:
    """Somebody's new device stays unknown, so it cannot read; or one sends keys to those who left."""
    async with aiohttp.ClientSession() as http:
        users, _ = await make_users(http, homeserver)
        lives = Lives(users, users[:1], seed)
        watcher = Follower(users[0], users[0], MODES[0])
        await lives.live(12)
        await watcher.sync()
        for _ in range(8):
            before = sharing(lives, users[0].user_id, lives.encrypted)
            watcher.world.devices_changed.clear()
            watcher.world.devices_left.clear()
            lives.changed_devices.clear()
            start = len(lives.log)
            await lives.live(10)
            await watcher.sync()
            after = sharing(lives, users[0].user_id, lives.encrypted)
            anywhere = sharing(lives, users[0].user_id, set(lives.rooms))
            must_change = (after - before) | (after & before & lives.changed_devices)
            for _ in range(SETTLING_POLLS):
                late = must_change - watcher.world.devices_changed - {users[0].user_id}
                if late:
                    await watcher.sync(timeout_ms=SETTLE_MS)
            assert not late, lives.log[start:]
            assert before - anywhere - {users[0].user_id} <= watcher.world.devices_left, lives.log[start:]


async def test_one_time_key_counts_are_told(homeserver: Homeserver) -> None:
    """A client does not notice that its one-time keys run out, and new conversations cannot start."""
    async with aiohttp.ClientSession() as http:
        alice, bob = [
            await register(http, homeserver, f"otk-{letter}-{secrets.token_hex(4)}", "correct horse")
            for letter in "ab"
        ]
        watcher = Follower(alice, alice, MODES[0])
        await watcher.sync()
        await alice.upload_device_keys()
        keys = {f"signed_curve25519:K{n}": {"key": f"key{n}", "signatures": {}} for n in range(5)}
        await alice.ok("POST", "/keys/upload", {"one_time_keys": keys})
        await watcher.sync()
        assert watcher.world.key_counts["signed_curve25519"] == 5
        wanted = {alice.user_id: {alice.device_id: "signed_curve25519"}}
        await bob.ok("POST", "/keys/claim", {"one_time_keys": wanted})
        await watcher.sync(timeout_ms=SETTLE_MS)
        assert watcher.world.key_counts["signed_curve25519"] == 4
