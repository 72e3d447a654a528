"""Answers of /sync and /events: what leaves the tail while they are made, and how far their tokens are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

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
from ranvier.spec.filters import Filter, parse_filter
from ranvier.spec.room_versions import room_version
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate
from ranvier.sync.assemble import SyncRequest
from ranvier.sync.context import SyncContext
from ranvier.sync.event_stream import StreamRequest
from ranvier.sync.sections.presence import PresenceSection
from ranvier.users.receipts import READ, Mark
from ranvier.users.requester import Requester
from ranvier.wire.tokens import Token, parse_token
from tests.account_server import read_config
from tests.core import KEY, SERVER_NAME
from tests.test_devices import make_devices

ALICE, BOB, CAROL = (f"@{name}:{SERVER_NAME}" for name in ("alice", "bob", "carol"))
PHONE = "PHONE"
ROWS = 20
LAZY = parse_filter({"room": {"state": {"lazy_load_members": True}}})


@dataclass
class Syncing:
    """A process with a small tail, as far as it is needed to answer syncs."""

    core: Core
    users: UserParts
    encryption: EncryptionParts
    sync: SyncParts

    async def create_room(self) -> str:
        """Make a room of Alice and Bob."""
        await self.core.nids.reserve()

        def build(draft: Draft) -> str:
            draft.add(sender=ALICE, type="m.room.create", state_key="", content={"room_version": "12"})
            rules = {"join_rule": "public"}
            join = {"membership": "join"}
            draft.add(sender=ALICE, type="m.room.member", state_key=ALICE, content=join)
            draft.add(sender=ALICE, type="m.room.join_rules", state_key="", content=rules)
            draft.add(sender=BOB, type="m.room.member", state_key=BOB, content=join)
            return draft.room_id

        return await self.core.writer.create(room_version("12"), "", build)

    async def say(self, room_id: str, body: str) -> str:
        """Let Bob say something, and give the event's id."""
        content = {"msgtype": "m.text", "body": body}
        row = await self.core.writer.write(
            room_id, lambda draft: draft.add(sender=BOB, type="m.room.message", content=content)
        )
        return row.event_id

    async def answer(self, since: Token | None, filter: Filter) -> Any:
        """Answer a sync of Alice's phone."""
        request = SyncRequest(user_id=ALICE, device_id=PHONE, filter=filter, since=since)
        return orjson.loads(await self.sync.assembler.answer(request))

    def now(self) -> Token:
        """Give the token of the present."""
        return Token(self.core.tail.pos, *self.core.bus.ephemeral_now())

    async def fill_tail(self) -> None:
        """Let so much happen that the tail holds nothing of what was."""
        for number in range(ROWS):
            await self.users.account_data.set(CAROL, "org.example.other", {"n": number})


@pytest.fixture
async def syncing(database: str) -> AsyncIterator[Syncing]:
    """The process, with a device of Alice and one of Bob."""
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
        for user_id, device_id in ((ALICE, PHONE), (BOB, "B")):
            await make_devices(core).ensure(user_id, device_id, None)  # type: ignore[arg-type]
        yield Syncing(core, users, encryption, sync)
        await core.stop()
    await own.close()


def let_happen_meanwhile(monkeypatch: pytest.MonkeyPatch, syncing: Syncing) -> None:
    """Have presence wait, once, until the tail holds nothing of what was."""
    since = PresenceSection.since
    waited = []

    async def since_slowly(self: PresenceSection, context: SyncContext) -> bytes | None:
        if not waited:
            waited.append(True)
            await syncing.fill_tail()
        return await since(self, context)

    monkeypatch.setattr(PresenceSection, "since", since_slowly)


async def test_a_sync_loses_nothing(syncing: Syncing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device would never get a room key, and a client not learn of a receipt, a setting, or who speaks."""
    room_id = await syncing.create_room()
    await syncing.answer(None, LAZY)
    event_id = await syncing.say(room_id, "hello")
    since = parse_token((await syncing.answer(syncing.now(), LAZY))["next_batch"])
    joined = await syncing.say(room_id, "again")
    message = {ALICE: {PHONE: {"key": 1}}}
    await syncing.encryption.to_device.send((BOB, "B"), "m.room_key", "t1", message)
    await syncing.users.receipts.mark(BOB, room_id, [Mark(READ, event_id)])
    await syncing.users.account_data.set(ALICE, "org.example.setting", {"on": True})
    assert since.pos >= syncing.core.tail.start
    let_happen_meanwhile(monkeypatch, syncing)
    answer = await syncing.answer(since, LAZY)
    assert since.pos < syncing.core.tail.start
    assert [event["content"] for event in answer["to_device"]["events"]] == [{"key": 1}]
    assert [event["type"] for event in answer["account_data"]["events"]] == ["org.example.setting"]
    room = answer["rooms"]["join"][room_id]
    assert [event["event_id"] for event in room["timeline"]["events"]] == [joined]
    assert [event["state_key"] for event in room["state"]["events"]] == [BOB]
    assert list(room["ephemeral"]["events"][0]["content"]) == [event_id]
    assert parse_token(answer["next_batch"]).pos == syncing.core.tail.pos


async def test_the_event_stream_loses_nothing(syncing: Syncing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of /events would not learn of a setting that was changed elsewhere."""
    since = syncing.now()
    await syncing.users.account_data.set(ALICE, "org.example.setting", {"on": True})
    let_happen_meanwhile(monkeypatch, syncing)
    request = StreamRequest(Requester(ALICE, PHONE), PHONE, since, timeout_s=0)
    answer = orjson.loads(await syncing.sync.event_stream.answer(request))
    assert [event["type"] for event in answer["chunk"]] == ["org.example.setting"]


async def test_no_count_of_a_token_goes_back(syncing: Syncing) -> None:
    """A client that comes to a worker which is behind would be told twice of who types or is online."""
    now = syncing.now()
    further = now._replace(ephemeral=now.ephemeral + 5)
    for since, count in ((further, further.ephemeral), (further._replace(epoch="other"), now.ephemeral)):
        answer = await syncing.answer(since, LAZY)
        assert parse_token(answer["next_batch"]) == Token(now.pos, count, now.epoch)
        request = StreamRequest(Requester(ALICE, PHONE), PHONE, since, timeout_s=0)
        stream = orjson.loads(await syncing.sync.event_stream.answer(request))
        assert parse_token(stream["end"]) == Token(now.pos, count, now.epoch)
