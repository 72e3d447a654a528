"""Which rooms a user is in, read while the log goes on."""

from __future__ import annotations

import asyncio

import pytest

from ranvier.storage.rooms import StoredMembership
from ranvier.wire.log_rows import PURGED_ROOM, LogRow
from tests.core import running_core

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_nobody_is_told_of_a_membership_that_is_not_followed_yet(database: str) -> None:
    """A client that syncs twice at once would be told the whole of a new room again by its next sync."""
    async with running_core(database) as one, running_core(database) as two:
        room_id = await one.create_room()

        async def read() -> tuple[int, int]:
            rooms = await two.memberships.of(BOB)
            return rooms[room_id].pos, two.tail.pos

        await one.join(room_id, BOB)  # its bus tells nobody else
        for pos, followed in await asyncio.gather(read(), read()):
            assert pos <= followed


async def test_a_room_that_goes_while_memberships_are_read_is_gone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who syncs just then would be told for ever that a room is unknown, instead of their rooms."""
    async with running_core(database) as core:
        kept, gone = await core.create_room(), await core.create_room()
        head = (await core.rooms.get(gone)).head
        read, purged = core.room_store.memberships, list[int]()

        async def read_and_purge(user_id: str) -> list[StoredMembership]:
            stored = await read(user_id)
            if not purged:
                row = LogRow(kind=PURGED_ROOM, room_id=gone, key=str(head))
                purged.append(await core.appender.append_rows([row]))
                assert await core.tail.wait_for(purged[0])
            return stored

        monkeypatch.setattr(core.room_store, "memberships", read_and_purge)
        assert list(await core.memberships.of(ALICE)) == [kept]
