"""What was redacted is also gone from the database after a while."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ranvier.cluster.leases import Lease, LeaseLostError
from ranvier.rooms.redaction_retention import RedactionRetention
from ranvier.spec.event_hashes import reference_hash
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.job_leases import JobLeaseStore
from ranvier.storage.redaction_retention import RedactionRetentionStore
from tests.room_endpoints import ALICE, BOB, RoomEndpoints, forget_memory, running_endpoints

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


def retention_of(app: RoomEndpoints) -> RedactionRetention:
    """Make what replaces redacted events."""
    return RedactionRetention(store=RedactionRetentionStore(app.core.database), retention_ms=WEEK_MS)


async def let_pass(app: RoomEndpoints, days: float) -> None:
    """Let time pass since all sweeps that were."""
    await app.core.database.execute("UPDATE log_times SET ts = ts - $1", int(days * DAY_MS))


async def pdu(app: RoomEndpoints, event_id: str) -> Any:
    """Give an event as it is stored."""
    return orjson.loads(
        await app.core.database.fetchval("SELECT pdu FROM events WHERE event_id = $1", event_id)
    )


async def say(app: RoomEndpoints, room_id: str, body: str, sender: str = ALICE) -> str:
    """Say something."""
    return await app.event(room_id, sender, "m.room.message", {"body": body, "msgtype": "m.text"})


async def redact(app: RoomEndpoints, room_id: str, event_id: str, reason: str = "why") -> None:
    """Let Alice redact an event."""
    answer = await app.ask("PUT", f"{room_id}/redact/{event_id}/{event_id[1:]}", "alice", {"reason": reason})
    assert answer.status == 200, answer


@pytest.mark.parametrize("version", ["1", "6", "11", "12"])
async def test_redacted_events_are_stored_redacted_after_the_period(database: str, version: str) -> None:
    """What somebody took back would be read by whoever gets the database, for ever; or at once be gone."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room(version=version)
        await app.member(room_id, "bob", "join")
        secret, kept = await say(app, room_id, "secret", BOB), await say(app, room_id, "kept")
        before = await pdu(app, secret)
        await redact(app, room_id, secret)
        retention = retention_of(app)
        await retention.sweep(app.core.database.transaction, WEEK_MS)
        await let_pass(app, 6.9)
        await retention.sweep(app.core.database.transaction, WEEK_MS)
        assert (await pdu(app, secret)) == before
        await let_pass(app, 0.2)
        later = await say(app, room_id, "redacted later")
        await redact(app, room_id, later)
        await retention.sweep(app.core.database.transaction, WEEK_MS)
        stored = await pdu(app, secret)
        assert stored["content"] == {}
        assert (await pdu(app, kept))["content"]["body"] == "kept"
        assert (await pdu(app, later))["content"]["body"] == "redacted later"
        # It still is the event that others refer to and that was signed.
        rules = ROOM_VERSIONS[version]
        assert reference_hash(stored, rules) == reference_hash(before, rules)
        assert stored["signatures"] == before["signatures"]
        forget_memory(app.core)
        shown = await app.get(f"{room_id}/event/{secret}", "bob")
        assert shown["content"] == {}
        assert shown["unsigned"]["redacted_because"]["content"]["reason"] == "why"
        await let_pass(app, 8)
        await retention.sweep(app.core.database.transaction, WEEK_MS)
        assert (await pdu(app, later))["content"] == {}
        assert await app.core.database.fetchval("SELECT count(*) FROM log_times") == 1


async def test_what_rooms_rest_on_is_kept(database: str) -> None:
    """A redacted rule of a room would change who may do what in it, for this server alone."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room(version="10")
        levels = {"users": {ALICE: 100}, "invite": 50, "notes": "x"}
        rule = await app.event(room_id, ALICE, "m.room.power_levels", levels, "")
        topic = await app.event(room_id, ALICE, "m.room.topic", {"topic": "secret"}, "")
        member = {"membership": "join", "displayname": "secret"}
        name = await app.event(room_id, ALICE, "m.room.member", member, ALICE)
        for event_id in (rule, topic, name):
            await redact(app, room_id, event_id)
        retention = retention_of(app)
        await retention.sweep(app.core.database.transaction, 0)
        assert (await pdu(app, rule))["content"] == levels
        assert (await pdu(app, topic))["content"] == {}
        assert (await pdu(app, name))["content"] == {"membership": "join"}
        app.core.rooms.drop(room_id)
        await say(app, room_id, "goes on")


async def test_many_are_replaced_in_pieces_by_one_process(database: str) -> None:
    """A server with many redactions would stand still, leave some out, or let a late process interfere."""
    async with running_endpoints(database) as app:
        core = app.core
        room_id = await core.create_room()
        told = [await say(app, room_id, str(number)) for number in range(130)]
        for event_id in told:
            await redact(app, room_id, event_id)
        leases = JobLeaseStore(core.database)
        epoch = await leases.take("redactions", "first", 10_000)
        assert epoch is not None
        late = Lease("redactions", epoch, store=leases, database=core.database)
        await core.database.execute("UPDATE job_leases SET until = '-infinity'")
        assert await leases.take("redactions", "second", 10_000)
        retention = retention_of(app)
        with pytest.raises(LeaseLostError):
            await retention.sweep(late.transaction, 0)
        assert (await pdu(app, told[0]))["content"]["body"] == "0"
        await retention.sweep(core.database.transaction, 0)
        assert [e for e in told if (await pdu(app, e))["content"]] == []
        progress = await RedactionRetentionStore(core.database).progress()
        assert progress == await core.database.fetchval("SELECT pos FROM log_head")


async def test_an_event_that_comes_after_its_redaction_is_found(database: str) -> None:
    """What another server delivers late would stay, though everybody was told that it is gone."""
    async with running_endpoints(database) as app:
        room_id = await app.core.create_room()
        late = await say(app, room_id, "secret")
        redaction = await say(app, room_id, "stands for its redaction")
        retention = retention_of(app)
        await retention.sweep(app.core.database.transaction, 0)
        await app.core.database.execute(
            "UPDATE events SET redacted_by = (SELECT event_nid FROM events WHERE event_id = $2), "
            "pos = (SELECT max(pos) + 1 FROM events) WHERE event_id = $1",
            late,
            redaction,
        )
        await app.core.database.execute("UPDATE log_head SET pos = pos + 1")
        await retention.sweep(app.core.database.transaction, 0)
        assert (await pdu(app, late))["content"] == {}
