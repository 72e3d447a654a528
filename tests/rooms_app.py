"""A core with the endpoints that make and find rooms, on a socket: what several test modules share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yarl

from ranvier.client_api import aliases as alias_area
from ranvier.client_api import create_room, membership, room_summary, room_upgrade
from ranvier.client_api import directory as directory_area
from ranvier.config.rooms import DirectoryRule, DirectoryRules, RoomsConfig
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication, unknown_token
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import bind
from ranvier.log.clock import SystemClock
from ranvier.rooms.aliases import Aliases
from ranvier.rooms.create import RoomCreator
from ranvier.rooms.directory import Directory
from ranvier.rooms.forget import ForgottenRooms
from ranvier.rooms.guests import GuestEviction
from ranvier.rooms.membership import Membership
from ranvier.rooms.space_hierarchy import SpaceHierarchy
from ranvier.rooms.summary import RoomSummaries
from ranvier.rooms.upgrade import RoomUpgrades
from ranvier.spec.globs import whole_glob
from ranvier.spec.room_versions import DEFAULT_ROOM_VERSION
from ranvier.storage.account_data import AccountDataStore
from ranvier.storage.aliases import AliasStore
from ranvier.storage.forgotten_rooms import ForgottenRoomStore
from ranvier.storage.push_rules import PushRuleStore
from ranvier.storage.room_directory import RoomDirectoryStore
from ranvier.users.account_data import AccountData
from ranvier.users.push_rules import PushRules
from ranvier.users.requester import Requester
from ranvier.users.tags import Tags
from ranvier.users.upgraded_rooms import UpgradedRooms
from ranvier.wire.log_rows import EventRow
from tests.core import SERVER_NAME, Core, running_core

ALICE, BOB, CAROL = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol"))
EVERYTHING = DirectoryRules(
    (DirectoryRule(whole_glob("*"), whole_glob("*"), whole_glob("*"), any_alias=True, allow=True),)
)
NOTHING = DirectoryRules(())


def rooms_config(**changes: Any) -> RoomsConfig:
    """Give a configuration that allows everything, but for ``changes``."""
    values: dict[str, Any] = {
        "default_room_version": DEFAULT_ROOM_VERSION.identifier,
        "encrypted_presets": frozenset(),
        "forget_rooms_on_leave": False,
        "alias_creation_rules": EVERYTHING,
        "room_list_publication_rules": EVERYTHING,
        "enable_room_list_search": True,
        "allow_public_rooms_without_auth": False,
        "allow_public_rooms_over_federation": False,
        "require_membership_for_aliases": True,
        "block_non_admin_invites": False,
        "filter_timeline_limit": 100,
        "redaction_retention_period_ms": None,
        "forgotten_room_retention_period_ms": None,
    }
    return RoomsConfig(**{**values, **changes})


class Holders:
    """Take the local part of a user id for their access token, so that tests need no accounts."""

    async def authenticate(self, token: str) -> Requester:
        if token == "expired":
            raise unknown_token()
        return Requester(
            f"@{token}:{SERVER_NAME}",
            "PHONE",
            is_guest=token.startswith("guest"),
            is_admin=token == "admin",
            suspended=token == "suspended",
        )


@dataclass(frozen=True)
class Answer:
    """What a request gave."""

    status: int
    json: Any

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.json.get("errcode", "")


@dataclass
class RoomsApp:
    """What the tests reach for. ``profiles`` and ``blocking`` are what accounts would say."""

    core: Core
    url: str
    session: aiohttp.ClientSession
    membership: Membership
    aliases: Aliases
    directory: Directory
    forgotten: ForgottenRooms
    creator: RoomCreator
    profiles: dict[str, dict[str, str]] = field(default_factory=dict)
    blocking: set[str] = field(default_factory=set)

    async def ask(
        self, method: str, path: str, user: str | None = None, body: Any = None, **query: Any
    ) -> Answer:
        """Make a request as the user with that local part; a path without a version is of v3."""
        headers = {"Authorization": f"Bearer {user}"} if user is not None else {}
        full = path if path.startswith("/_matrix") else "/_matrix/client/v3" + path
        url = yarl.URL(self.url + full, encoded=True).update_query(query)
        async with self.session.request(method, url, json=body, headers=headers) as answer:
            return Answer(answer.status, await answer.json())

    async def post(self, path: str, user: str | None = None, body: Any = None, **query: Any) -> Answer:
        return await self.ask("POST", path, user, body if body is not None else {}, **query)

    async def get(self, path: str, user: str | None = None, **query: Any) -> Answer:
        return await self.ask("GET", path, user, None, **query)

    async def create(self, user: str = "alice", **options: Any) -> str:
        """Make a room through the API."""
        answer = await self.post("/createRoom", user, options)
        assert answer.status == 200, answer
        room_id: str = answer.json["room_id"]
        return room_id

    async def act(
        self, user: str, action: str, room_id: str, target: str | None = None, **more: Any
    ) -> Answer:
        """Join, leave, kick …"""
        body = {"user_id": f"@{target}:{SERVER_NAME}", **more} if target is not None else more
        return await self.post(f"/rooms/{room_id}/{action}", user, body)

    async def timeline(self, room_id: str) -> list[EventRow]:
        """Read every event of a room from the database."""
        room = await self.core.rooms.get(room_id)
        return await self.core.events.forwards(room.room_nid, after=0, upto=1 << 60, limit=1000)

    async def content(self, room_id: str, type: str, state_key: str = "") -> Mapping[str, Any]:
        return (await self.core.rooms.get(room_id)).content(type, state_key)

    async def membership_of(self, room_id: str, user: str) -> str | None:
        return (await self.core.rooms.get(room_id)).membership_of(f"@{user}:{SERVER_NAME}")

    async def set_state(
        self, room_id: str, type: str, content: dict[str, Any], state_key: str = "", sender: str = ALICE
    ) -> EventRow:
        return await self.core.writer.write(
            room_id,
            lambda draft: draft.add(sender=sender, type=type, state_key=state_key, content=content),
        )


@asynccontextmanager
async def running_rooms_app(
    dsn: str, *, config: RoomsConfig | None = None, rates: Mapping[str, Rate] | None = None
) -> AsyncIterator[RoomsApp]:
    """Serve the endpoints on a free port."""
    config = config or rooms_config()
    limiter = RateLimiter(rates or {})
    clock = SystemClock()
    profiles: dict[str, dict[str, str]] = {}
    blocking: set[str] = set()

    async def profile_of(user_id: str) -> Mapping[str, Any]:
        return profiles.get(user_id, {})

    async def invites_blocked(user_id: str) -> bool:
        return user_id in blocking

    async with running_core(dsn) as core, aiohttp.ClientSession() as session:
        alias_store = AliasStore(core.database)
        directory_store = RoomDirectoryStore(core.database)
        forgotten = ForgottenRooms(
            store=ForgottenRoomStore(core.database),
            memberships=core.memberships,
            appender=core.appender,
            tail=core.tail,
        )
        members = Membership(
            server_name=SERVER_NAME,
            rooms=core.rooms,
            writer=core.writer,
            memberships=core.memberships,
            forgotten=forgotten,
            profile_of=profile_of,
            invites_blocked=invites_blocked,
            limit=lambda name, key: limiter.check(name, key, clock.monotonic()),
            forget_on_leave=config.forget_rooms_on_leave,
            block_invites=config.block_non_admin_invites,
        )
        aliases = Aliases(
            server_name=SERVER_NAME,
            store=alias_store,
            rooms=core.rooms,
            writer=core.writer,
            appender=core.appender,
            clock=clock,
            creation_rules=config.alias_creation_rules,
            require_membership=config.require_membership_for_aliases,
        )
        directory = Directory(
            store=directory_store,
            aliases=alias_store,
            rooms=core.rooms,
            appender=core.appender,
            publication_rules=config.room_list_publication_rules,
        )
        creator = RoomCreator(
            server_name=SERVER_NAME,
            writer=core.writer,
            membership=members,
            aliases=aliases,
            directory=directory,
            config=config,
        )
        account_data_store = AccountDataStore(core.database)
        account_data = AccountData(store=account_data_store, appender=core.appender, tail=core.tail)
        parts = {
            "upgraded_rooms": UpgradedRooms(
                rooms=core.rooms,
                memberships=core.memberships,
                tags=Tags(store=account_data_store, account_data=account_data),
                account_data=account_data,
                push_rules=PushRules(
                    store=PushRuleStore(core.database), appender=core.appender, tail=core.tail
                ),
            ),
            "membership": members,
            "memberships": core.memberships,
            "aliases": aliases,
            "directory": directory,
            "forgotten": forgotten,
            "room_creator": creator,
            "room_upgrades": RoomUpgrades(
                rooms=core.rooms,
                writer=core.writer,
                membership=members,
                aliases=aliases,
                directory=directory,
                room_creator=creator,
            ),
            "room_summaries": RoomSummaries(store=directory_store, memberships=core.memberships),
            "space_hierarchy": SpaceHierarchy(store=directory_store, memberships=core.memberships),
            "rooms_config": config,
            "server_name": SERVER_NAME,
        }
        areas = [create_room, membership, alias_area, directory_area, room_summary, room_upgrade]
        routes = [route for area in areas for route in area.ROUTES]
        application = Application(
            {"client": bind(routes, parts)},
            authentication=RequestAuthentication(Holders()),
            limiter=limiter,
            metrics=Metrics(),
        )
        listener = Listener(ListenerSettings((TcpAddress("127.0.0.1", 0),)), application.endpoint(["client"]))

        async def guests_in(room_id: str) -> list[str]:
            room = await core.rooms.find(room_id)
            return [] if room is None else [it for it in room.joined if it.startswith("@guest")]

        async def rooms_with_guests() -> list[tuple[str, bytes]]:
            return []

        eviction = GuestEviction(
            writer=core.writer, tail=core.tail, guests_in=guests_in, rooms_with_guests=rooms_with_guests
        )
        evicting = asyncio.create_task(eviction.run())
        await listener.start()
        address = listener.addresses[0]
        assert isinstance(address, TcpAddress)
        try:
            yield RoomsApp(
                core=core,
                url=f"http://127.0.0.1:{address.port}",
                session=session,
                membership=members,
                aliases=aliases,
                directory=directory,
                forgotten=forgotten,
                creator=creator,
                profiles=profiles,
                blocking=blocking,
            )
        finally:
            await listener.stop(grace_s=2)
            evicting.cancel()


def types_of(rows: Sequence[EventRow]) -> list[str]:
    """Give the types of some events."""
    return [row.type for row in rows]
