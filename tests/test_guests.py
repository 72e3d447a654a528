"""Guests leave rooms that close to them, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ranvier.rooms import guests
from ranvier.rooms.guests import GuestEviction
from ranvier.storage.accounts import AccountStore
from ranvier.storage.database import DatabaseUnavailable
from tests.core import Core, running_core
from tests.endpoints import background

ALICE, BOB, GUEST = "@alice:example.org", "@bob:example.org", "@17:example.org"


def eviction_of(core: Core) -> GuestEviction:
    """Make what lets guests leave."""
    store = AccountStore(core.database)
    return GuestEviction(
        writer=core.writer,
        tail=core.tail,
        guests_in=store.guests_in,
        rooms_with_guests=store.rooms_with_guests,
    )


async def say(core: Core, room_id: str, guest_access: str) -> None:
    """Say whether guests may be in a room."""
    content = {"guest_access": guest_access}
    await core.writer.write(
        room_id,
        lambda draft: draft.add(sender=ALICE, type="m.room.guest_access", state_key="", content=content),
    )


async def room_with_guest(core: Core) -> str:
    """Make a room that lets guests in, with one in it, and Bob."""
    for user_id, is_guest in ((ALICE, False), (BOB, False), (GUEST, True)):
        await core.database.execute(
            "INSERT INTO accounts (user_id, created_ts, is_guest) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING",
            *(user_id, is_guest),
        )
    room_id = await core.create_room()
    await say(core, room_id, "can_join")
    for user_id in (BOB, GUEST):
        await core.join(room_id, user_id)
    return room_id


async def until_left(core: Core, room_id: str) -> None:
    """Wait until only those who are no guests are in a room."""
    async with asyncio.timeout(20):
        while (await core.rooms.get(room_id)).joined != {ALICE, BOB}:
            await core.tail.wait_for(core.tail.pos + 1, 0.02)


async def test_guests_leave_later_if_they_can_not_at_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If PostgreSQL is away when a room closes to guests, they would read on in it for ever."""
    monkeypatch.setattr(guests, "_FIRST_PAUSE_S", 0.02)
    async with running_core(database) as core:
        rooms = [await room_with_guest(core) for _ in range(2)]
        eviction, failures = eviction_of(core), 0
        guests_in = eviction._guests_in

        async def unreachable(room_id: str) -> Sequence[str]:
            nonlocal failures
            failures += 1
            if failures <= 3:
                raise DatabaseUnavailable
            if failures <= 5:
                raise RuntimeError("a mistake of ours")
            return await guests_in(room_id)

        monkeypatch.setattr(eviction, "_guests_in", unreachable)
        async with background(eviction.run()):
            for room_id in rooms:
                await say(core, room_id, "forbidden")
            for room_id in rooms:
                await until_left(core, room_id)


async def test_guests_leave_after_a_restart(database: str) -> None:
    """A server that stopped when a room closed to guests would leave them there; or all others left."""
    async with running_core(database) as core:
        closed, still_open = await room_with_guest(core), await room_with_guest(core)
        await say(core, closed, "forbidden")
    async with running_core(database) as core:
        async with background(eviction_of(core).run()):
            await until_left(core, closed)
        assert (await core.rooms.get(still_open)).joined == {ALICE, BOB, GUEST}


async def test_a_beginning_without_a_database_is_made_up_for(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that started while PostgreSQL was away would never look for the guests of before."""
    monkeypatch.setattr(guests, "_FIRST_PAUSE_S", 0.02)
    async with running_core(database) as core:
        closed = await room_with_guest(core)
        await say(core, closed, "forbidden")
        eviction, asked = eviction_of(core), 0
        rooms_with_guests = eviction._rooms_with_guests

        async def unreachable() -> Sequence[tuple[str, bytes]]:
            nonlocal asked
            asked += 1
            if asked < 3:
                raise DatabaseUnavailable
            return await rooms_with_guests()

        monkeypatch.setattr(eviction, "_rooms_with_guests", unreachable)
        async with background(eviction.run()):
            await until_left(core, closed)
