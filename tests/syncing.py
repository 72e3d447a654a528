"""A process that answers syncs, with a small tail: what several test modules share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from ranvier.config.server import TailConfig
from ranvier.log.bus import LocalBus
from ranvier.log.clock import SystemClock
from ranvier.processes.core import Core, start_core
from ranvier.processes.encryption import EncryptionParts, build_encryption
from ranvier.processes.ephemeral import build_ephemeral
from ranvier.processes.room_parts import build_rooms
from ranvier.processes.sync_parts import SyncParts, build_sync
from ranvier.processes.user_data import UserParts, build_user_data
from ranvier.rooms.draft import Draft, Identity
from ranvier.spec.filters import Filter
from ranvier.spec.room_versions import room_version
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate
from ranvier.sync.assemble import SyncRequest
from ranvier.wire.log_rows import EventRow
from ranvier.wire.tokens import Token
from tests.account_server import read_config
from tests.core import KEY, SERVER_NAME
from tests.test_devices import make_devices

ALICE, BOB, CAROL = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol"))
PHONE = "PHONE"
ROWS = 20


@dataclass
class Syncing:
    """A process with a small tail, as far as it is needed to answer syncs."""

    core: Core
    users: UserParts
    encryption: EncryptionParts
    sync: SyncParts

    async def create_room(
        self, members: Sequence[str] = (BOB,), join_rule: str = "public", visibility: str = "shared"
    ) -> str:
        """Make a room of Alice, and of Bob if nothing else is said."""
        await self.core.nids.reserve()

        def build(draft: Draft) -> str:
            draft.add(sender=ALICE, type="m.room.create", state_key="", content={"room_version": "12"})
            rules = {"join_rule": "public"}
            seen = {"history_visibility": visibility}
            join = {"membership": "join"}
            draft.add(sender=ALICE, type="m.room.member", state_key=ALICE, content=join)
            draft.add(sender=ALICE, type="m.room.join_rules", state_key="", content=rules)
            draft.add(sender=ALICE, type="m.room.history_visibility", state_key="", content=seen)
            for member in members:
                draft.add(sender=member, type="m.room.member", state_key=member, content=join)
            if join_rule != "public":
                rules = {"join_rule": join_rule}
                draft.add(sender=ALICE, type="m.room.join_rules", state_key="", content=rules)
            return draft.room_id

        return await self.core.writer.create(room_version("12"), "", build)

    async def say(self, room_id: str, body: str, sender: str = BOB) -> str:
        """Let Bob, or somebody else, say something, and give the event's id."""
        content = {"msgtype": "m.text", "body": body}
        return (await self.put(room_id, sender, "m.room.message", content, None)).event_id

    async def put(
        self, room_id: str, sender: str, type: str, content: dict[str, Any], state_key: str | None = ""
    ) -> EventRow:
        """Let somebody write an event, of state if nothing else is said."""
        return await self.core.writer.write(
            room_id,
            lambda draft: draft.add(sender=sender, type=type, content=content, state_key=state_key),
        )

    async def move(
        self, room_id: str, user_id: str, membership: str, by: str | None = None, **more: Any
    ) -> EventRow:
        """Let a user join, knock, leave … or be invited, banned … by somebody."""
        content = {"membership": membership, **more}
        return await self.put(room_id, by or user_id, "m.room.member", content, user_id)

    async def answer(self, since: Token | None, filter: Filter, user_id: str = ALICE, **more: bool) -> Any:
        """Answer a sync of Alice's phone, or of somebody else's; ``more`` as in SyncRequest."""
        request = SyncRequest(user_id=user_id, device_id=PHONE, filter=filter, since=since, **more)
        return orjson.loads(await self.sync.assembler.answer(request))

    def now(self) -> Token:
        """Give the token of the present."""
        return Token(self.core.tail.pos, *self.core.bus.ephemeral_now())

    async def fill_tail(self) -> None:
        """Let so much happen that the tail holds nothing of what was."""
        for number in range(ROWS):
            await self.users.account_data.set(CAROL, "org.example.other", {"n": number})


@asynccontextmanager
async def running_sync(database: str) -> AsyncIterator[Syncing]:
    """Run the process, with a device of each user."""
    config = read_config("")
    own = Database({"dsn": database}, size=8)
    await migrate(own, SERVER_NAME)
    async with asyncio.TaskGroup() as tasks:
        core = await start_core(
            own,
            bus=LocalBus(),
            clock=SystemClock(),
            identity=Identity(SERVER_NAME, KEY),
            tasks=tasks,
            tail_config=TailConfig(rows=ROWS),
        )
        users, encryption, ephemeral = (
            build_user_data(core, config),
            build_encryption(core),
            build_ephemeral(core, config),
        )
        rooms = build_rooms(
            core,
            config,
            profile_of=users.profiles.get,
            invites_blocked=users.account_data.invites_blocked,
            limit=lambda name, key: None,
        )
        sync = build_sync(core, config, rooms=rooms, users=users, encryption=encryption, ephemeral=ephemeral)
        for user_id, device_id in ((ALICE, PHONE), (BOB, PHONE), (BOB, "B")):
            await make_devices(core).ensure(user_id, device_id, None)  # type: ignore[arg-type]
        yield Syncing(core, users, encryption, sync)
        await core.stop()
    await own.close()
