"""Seeding a long log for the bench: what it writes is what the server itself would have written."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from bench.seed.__main__ import seed
from ranvier.spec.event_auth import check_auth
from ranvier.spec.event_hashes import check_content_hash, event_id
from ranvier.spec.signatures import verify_event
from tests.core import KEY, SERVER_NAME, Core, running_core

EVENTS = 6000  # more than a process reads of the log when it starts
TALKER = "@talker:example.org"


async def _check_room(core: Core, room_id: str) -> None:
    room = await core.rooms.get(room_id)
    snapshot = await core.room_store.snapshot(room.snapshot_nid)
    assert set(snapshot) == {row.event_nid for row in room.state.values()}
    rows = await core.events.forwards(room.room_nid, after=0, upto=room.head, limit=EVENTS)
    for before, row in pairwise(rows):
        assert row.event.prev_event_ids == [before.event_id]
        assert row.depth == before.depth + 1
    for row in rows[-30:]:
        assert event_id(row.event.pdu, row.version) == row.event_id
        assert check_content_hash(row.event.pdu)
        verify_event(row.event.pdu, row.version, SERVER_NAME, KEY.key_id, KEY.verify_key)
        assert row.snapshot_nid is not None
        before_it = await core.events.by_nids(await core.room_store.snapshot(row.snapshot_nid))
        check_auth(row.event, {state.key: state.event for state in before_it.values()})


async def test_a_seeded_log_is_like_one_that_grew(database: str) -> None:
    """Otherwise the bench would measure a server that reads what it would never have written.

    And a user opens a room in which nothing was said for long: after a restart it would load for ever.
    """
    async with running_core(database) as core:
        busy, quiet = await core.create_room(), await core.create_room()
        await core.join(busy, TALKER)
    await seed(database, KEY.format(), events=EVENTS, processes=2)
    async with running_core(database) as core:
        found = await core.database.fetchrow("SELECT count(*), min(pos), max(pos) FROM events")
        head = await core.database.fetchval("SELECT pos FROM log_head")
        assert found is not None
        assert tuple(found) == (head, 1, head)
        new = await core.database.fetch("SELECT room_id FROM rooms WHERE room_id <> ALL ($1)", [busy, quiet])
        assert len(new) == EVENTS // 1000
        for room_id in (busy, *(record["room_id"] for record in new)):
            await _check_room(core, room_id)
        row = await core.send(busy, TALKER, "on top of it")
        assert row.pos == head + 1
        async with asyncio.timeout(20):
            assert (await core.rooms.get(quiet)).head < core.tail.start
