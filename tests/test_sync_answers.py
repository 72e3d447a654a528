"""Answers of /sync and /events: what leaves the tail while they are made, and how far their tokens are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest

from ranvier.spec.filters import parse_filter
from ranvier.sync.context import SyncContext
from ranvier.sync.event_stream import StreamRequest
from ranvier.sync.sections.presence import PresenceSection
from ranvier.users.receipts import READ, Mark
from ranvier.users.requester import Requester
from ranvier.wire.tokens import Token, parse_token
from tests.syncing import ALICE, BOB, PHONE, Syncing, running_sync

LAZY = parse_filter({"room": {"state": {"lazy_load_members": True}}})


@pytest.fixture
async def syncing(database: str) -> AsyncIterator[Syncing]:
    """Give the process."""
    async with running_sync(database) as syncing:
        yield syncing


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
