"""The graph of a room's events as a receiver needs it: what stands where, and how it was judged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import asyncpg
from pyroaring import BitMap64

from ranvier.spec.event import StateKey
from ranvier.storage.database import Database
from ranvier.storage.events import EVENT_COLUMNS, event_row
from ranvier.storage.log import AlreadyStored, Snapshot
from ranvier.wire.log_rows import EventRow

_PAGE: Final = 1000

_STANDINGS = """
SELECT event_id, event_nid, room_nid, type, state_key, pos IS NOT NULL AS in_timeline, rejected, soft_failed,
       snapshot_nid, replaces_nid
FROM events WHERE event_id = ANY ($1)
"""
_KEYS = "SELECT event_nid, type, state_key FROM events WHERE event_nid = ANY ($1) AND state_key IS NOT NULL"
_AT_KEYS = """
SELECT e.type, e.state_key, e.event_nid
FROM unnest($2::text[], $3::text[]) AS wanted (type, state_key)
JOIN events e ON e.room_nid = $1 AND e.type = wanted.type AND e.state_key = wanted.state_key
"""
_REJECTED = "SELECT event_nid FROM events WHERE event_nid = ANY ($1) AND rejected"
_AUTH_CHAINS = "SELECT event_nid, auth_chain FROM events WHERE event_nid = ANY ($1)"
_FOLLOWED = """
SELECT DISTINCT edge.prev_id FROM event_edges edge JOIN events e USING (event_nid)
WHERE edge.prev_id = ANY ($1) AND e.pos IS NOT NULL
"""
# Also of a room that is not one of ours yet, and so has no row in `rooms`.
_OF_ROOM = f"""
SELECT {EVENT_COLUMNS} FROM events e CROSS JOIN (SELECT $2::text AS room_id, $3::text AS version) r
WHERE e.room_nid = $1 AND (e.event_id = ANY ($4) OR e.event_nid = ANY ($5))
"""
_REDACTIONS = """
SELECT r.target_id, r.event_nid FROM redactions r JOIN events e USING (event_nid)
WHERE r.target_id = ANY ($1) AND e.pos IS NOT NULL ORDER BY e.pos
"""
_STORE_REFUSED = """
INSERT INTO events (event_nid, room_nid, event_id, type, state_key, sender, depth, origin_server_ts, rejected,
                    soft_failed, snapshot_nid, replaces_nid, auth_chain, pdu)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
-- It was an outlier before, and is now placed in the room's history.
ON CONFLICT (event_nid) DO UPDATE SET rejected = excluded.rejected, soft_failed = excluded.soft_failed,
    snapshot_nid = excluded.snapshot_nid, replaces_nid = excluded.replaces_nid WHERE events.pos IS NULL
"""
_STORE_SNAPSHOTS = """
INSERT INTO snapshots (snapshot_nid, room_nid, parent_nid, steps, state, added, removed)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_STORE_EDGES = """
INSERT INTO event_edges (room_nid, prev_id, event_nid)
SELECT $1, prev_id, $3 FROM unnest($2::text[]) AS prev_id ON CONFLICT DO NOTHING
"""


class Standing(NamedTuple):
    """What is known of an event; ``snapshot_nid`` is the state before it, None where that is not known."""

    event_id: str
    event_nid: int
    room_nid: int
    type: str
    state_key: str | None
    in_timeline: bool
    rejected: bool
    soft_failed: bool
    snapshot_nid: int | None
    replaces_nid: int | None

    @property
    def is_placed(self) -> bool:
        """Whether the state before it is known, so that others can follow it."""
        return self.snapshot_nid is not None or (self.type == "m.room.create" and self.state_key == "")

    @property
    def is_refused(self) -> bool:
        """Whether it is kept and never shown."""
        return self.rejected or self.soft_failed


class EventGraphStore:
    """Read and keep what the receiving of events needs beside the events themselves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standings(self, event_ids: Collection[str]) -> dict[str, Standing]:
        """Say where events stand; those not known are left out."""
        if not event_ids:
            return {}
        records = await self._database.fetch(_STANDINGS, list(event_ids))
        return {record["event_id"]: Standing(*record) for record in records}

    async def keys_of(self, nids: Iterable[int]) -> dict[int, StateKey]:
        """Give the state key of each state event."""
        return {
            record["event_nid"]: (record["type"], record["state_key"])
            for page in _pages(nids)
            for record in await self._database.fetch(_KEYS, page)
        }

    async def nids_at(self, room_nid: int, keys: Sequence[StateKey]) -> dict[StateKey, list[int]]:
        """Give every event that was ever made for some state keys of a room."""
        found: dict[StateKey, list[int]] = {}
        types, state_keys = [key[0] for key in keys], [key[1] for key in keys]
        for record in await self._database.fetch(_AT_KEYS, room_nid, types, state_keys):
            found.setdefault((record["type"], record["state_key"]), []).append(record["event_nid"])
        return found

    async def rows_of_room(
        self,
        room_nid: int,
        room_id: str,
        version_id: str,
        *,
        event_ids: Collection[str] = (),
        nids: Collection[int] = (),
    ) -> dict[str, EventRow]:
        """Find events of a room that is perhaps still being joined, by their ids."""
        records = await self._database.fetch(
            _OF_ROOM, room_nid, room_id, version_id, list(event_ids), list(nids)
        )
        return {record["event_id"]: event_row(record) for record in records}

    async def rejected(self, nids: Iterable[int]) -> set[int]:
        """Give those of the events that were rejected."""
        return {
            record["event_nid"]
            for page in _pages(nids)
            for record in await self._database.fetch(_REJECTED, page)
        }

    async def auth_chains(self, nids: Iterable[int]) -> dict[int, bytes | None]:
        """Give the stored auth chain (a roaring bitmap) of each event, read in pages."""
        return {
            record["event_nid"]: record["auth_chain"]
            for page in _pages(nids)
            for record in await self._database.fetch(_AUTH_CHAINS, page)
        }

    async def followed(self, event_ids: Collection[str]) -> set[str]:
        """Give those of the events that one of the timeline follows, which came before them."""
        return {record["prev_id"] for record in await self._database.fetch(_FOLLOWED, list(event_ids))}

    async def redactions_of(self, event_ids: Collection[str]) -> dict[str, list[int]]:
        """Give the redactions that came before their targets, in order, by the target's id."""
        found: dict[str, list[int]] = {}
        for record in await self._database.fetch(_REDACTIONS, list(event_ids)):
            found.setdefault(record["target_id"], []).append(record["event_nid"])
        return found

    async def store_refused(
        self, row: EventRow, *, rejected: bool, soft_failed: bool, snapshots: Sequence[Snapshot]
    ) -> None:
        """Keep an event that is never shown, with its place in the history.

        Raises AlreadyStored when another process stored it meanwhile.
        """
        try:
            async with self._database.transaction() as connection:
                await connection.executemany(_STORE_SNAPSHOTS, snapshots)
                await connection.execute(_STORE_REFUSED, *_refused_tuple(row, rejected, soft_failed))
        except asyncpg.UniqueViolationError:
            raise AlreadyStored from None

    async def store_edges(self, row: EventRow, prev_ids: Sequence[str]) -> None:
        """Remember that an event follows others that are not stored yet."""
        await self._database.execute(_STORE_EDGES, row.room_nid, prev_ids, row.event_nid)

    async def store_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Store snapshots ahead of the commit that makes them count."""
        async with self._database.transaction() as connection:
            await connection.executemany(_STORE_SNAPSHOTS, snapshots)


def _refused_tuple(row: EventRow, rejected: bool, soft_failed: bool) -> tuple[object, ...]:
    return (
        row.event_nid,
        row.room_nid,
        row.event_id,
        row.type,
        row.state_key,
        row.sender,
        row.depth,
        row.origin_server_ts,
        rejected,
        soft_failed,
        row.snapshot_nid,
        row.replaces_nid,
        row.auth_chain,
        row.pdu,
    )


def _pages(nids: Iterable[int]) -> list[list[int]]:
    # The answer to one statement is decoded at one go, on the event loop.
    wanted = list(nids)
    return [wanted[start : start + _PAGE] for start in range(0, len(wanted), _PAGE)]


def bitmaps(chains: Mapping[int, bytes | None]) -> dict[int, BitMap64]:
    """Read stored auth chains; an event without one has an empty one."""
    return {nid: BitMap64.deserialize(data) if data else BitMap64() for nid, data in chains.items()}
