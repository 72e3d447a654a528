"""One process's share of the seeding: rooms of its own, written with COPY in one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from typing import Any

import asyncpg

from bench.seed.plan import Plan, PlannedRoom
from bench.seed.talk import Life, Step, life_of
from ranvier.rooms.draft import Draft, Identity
from ranvier.rooms.room import Room
from ranvier.spec.room_versions import ROOM_VERSIONS, room_version
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database
from ranvier.storage.log import RoomWrite
from ranvier.storage.nids import Nids
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import EventRow

NEW_ROOM_VERSION = "12"
# Each event takes at most three integers (itself, a snapshot, its room) of the 4096 that may be reserved.
_SLICE = 1000
_COMMIT_TIMEOUT_S = 1800
_COLUMNS = {
    table: tuple(names.split())
    for table, names in {
        "events": "event_nid pos room_nid event_id type state_key sender depth origin_server_ts snapshot_nid "
        "replaces_nid auth_chain pdu",
        "snapshots": "snapshot_nid room_nid parent_nid steps state added removed",
        "state_deltas": "pos room_nid type state_key event_nid prev_nid",
        "relations": "target_id rel_type event_nid pos room_nid type sender",
        "rooms": "room_nid room_id version head snapshot_nid extremities",
        "current_state": "room_nid type state_key event_nid membership",
    }.items()
}


@dataclass
class _LiveRoom:
    """A room as far as it was written, with what is going to happen in it."""

    room: Room
    life: Life
    next: Step
    draft: Draft | None = None
    positions: list[int] = field(default_factory=list)


def run_share(dsn: str, key_line: str, plan: Plan, share: int, shares: int, barrier: Barrier) -> None:
    """Write the events of every `shares`-th room; commit when all the others are ready to, too.

    Raises BrokenBarrierError when another share failed: then nothing of any share is kept.
    """
    try:
        asyncio.run(_Share(dsn, SigningKey.parse(key_line), plan, share, shares).run(barrier))
    except BaseException:
        barrier.abort()
        raise


class _Share:
    def __init__(self, dsn: str, key: SigningKey, plan: Plan, share: int, shares: int) -> None:
        self._plan = plan
        self._share = share
        self._shares = shares
        self._database = Database({"dsn": dsn}, size=4)
        self._nids = Nids(self._database)
        self._identity = Identity(plan.server_name, key)
        self._rooms: dict[int, _LiveRoom] = {}

    async def run(self, barrier: Barrier) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                "SET LOCAL synchronous_commit = off; SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            for planned in self._plan.rooms:
                if planned.room_id is not None and planned.number % self._shares == self._share:
                    self._rooms[planned.number] = await self._existing(planned, planned.room_id)
            for positions in self._plan.slices(_SLICE):
                await self._write_slice(connection, positions)
            await self._write_rooms(connection)
            barrier.wait(_COMMIT_TIMEOUT_S)
        await self._database.close()

    async def _existing(self, planned: PlannedRoom, room_id: str) -> _LiveRoom:
        loaded = await RoomStore(self._database).load(room_id)
        assert loaded is not None
        room = Room.from_storage(loaded, ROOM_VERSIONS[loaded.stored.version])
        life = life_of(planned, room.version)
        return _LiveRoom(room, life, next(life))

    def _new(self, planned: PlannedRoom) -> _LiveRoom:
        room = Room(room_nid=self._nids.take(), room_id="", version=room_version(NEW_ROOM_VERSION))
        life = life_of(planned, room.version)
        return _LiveRoom(room, life, next(life))

    async def _write_slice(
        self, connection: asyncpg.Connection, positions: Sequence[tuple[int, int]]
    ) -> None:
        await self._nids.reserve(3 * _SLICE)
        now_ms = int(time.time() * 1000)
        touched: dict[int, _LiveRoom] = {}
        for pos, number in positions:
            if number % self._shares == self._share:
                live = touched[number] = self._live(number)
                self._add(live, pos, now_ms)
        writes = [self._finish(live) for live in touched.values()]
        await _copy_writes(connection, writes)

    def _live(self, number: int) -> _LiveRoom:
        live = self._rooms.get(number)
        if live is None:
            live = self._rooms[number] = self._new(self._plan.rooms[number])
        return live

    def _add(self, live: _LiveRoom, pos: int, now_ms: int) -> None:
        if live.draft is None:
            live.draft = Draft(live.room, identity=self._identity, nids=self._nids, now_ms=now_ms)
        step = live.next
        row = live.draft.add(
            sender=step.sender, type=step.type, content=step.content, state_key=step.state_key
        )
        assert not row.pos, "a step repeated what the state said already"
        row.pos = pos
        live.next = live.life.send(row.event_id)

    def _finish(self, live: _LiveRoom) -> RoomWrite:
        draft, live.draft = live.draft, None
        assert draft is not None
        write = draft.write()
        live.room.room_id = write.room_id
        for row in write.events:
            live.room.apply(row)
        return write

    async def _write_rooms(self, connection: asyncpg.Connection) -> None:
        """Write where every room stands at the end."""
        rooms = [live.room for live in self._rooms.values()]
        nids = [room.room_nid for room in rooms]
        for table in ("rooms", "current_state"):
            await connection.execute(f"DELETE FROM {table} WHERE room_nid = ANY ($1)", nids)
        extremities = {room.room_nid: [row.event_nid for row in room.extremities] for room in rooms}
        await _copy(
            connection,
            "rooms",
            [
                (r.room_nid, r.room_id, r.version.identifier, r.head, r.snapshot_nid, extremities[r.room_nid])
                for r in rooms
            ],
        )
        rows = [row for room in rooms for row in room.state.values()]
        await _copy(
            connection, "current_state", [(r.room_nid, *r.key, r.event_nid, r.membership) for r in rows]
        )


async def _copy_writes(connection: asyncpg.Connection, writes: Iterable[RoomWrite]) -> None:
    """Write the events and what belongs to them in their order, as `log_append` would."""
    events = sorted((row for write in writes for row in write.events), key=lambda row: row.pos)
    positions = {row.event_nid: row.pos for row in events}
    await _copy(connection, "events", [_event_record(row) for row in events])
    await _copy(connection, "snapshots", [s for write in writes for s in write.snapshots])
    await _copy(
        connection,
        "state_deltas",
        [
            (positions[c.at_nid], c.room_nid, c.type, c.state_key, c.event_nid, c.prev_nid)
            for write in writes
            for c in write.changes
        ],
    )
    await _copy(
        connection,
        "relations",
        [
            (r.target_id, r.rel_type, r.event_nid, positions[r.event_nid], r.room_nid, r.type, r.sender)
            for write in writes
            for r in write.relations
        ],
    )


def _event_record(row: EventRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _COLUMNS["events"])


async def _copy(connection: asyncpg.Connection, table: str, records: Sequence[tuple[Any, ...]]) -> None:
    if records:
        await connection.copy_records_to_table(table, columns=_COLUMNS[table], records=records)
