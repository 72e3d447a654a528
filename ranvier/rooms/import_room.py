"""Taking over a room from another server: its state in bulk, then one row through the log.

Source: server-server API, "Joining Rooms".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyroaring import BitMap64

from ranvier.log.append import Appender, HeadMoved
from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import state_change
from ranvier.rooms.outliers import Outliers, RoomName, StoredOutliers
from ranvier.rooms.received_pdu import KeyRing
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError, bad_json
from ranvier.spec.event import StateKey
from ranvier.spec.event_auth import CREATE_KEY, check_auth
from ranvier.spec.room_versions import RoomVersion
from ranvier.storage.database import DatabaseUnavailable
from ranvier.storage.event_graph import EventGraphStore
from ranvier.storage.log import RoomWrite, Snapshot, StateChange
from ranvier.storage.nids import Nids
from ranvier.storage.room_imports import RoomImportStore
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import EventRow

MAX_STATE: Final = 500_000
_MAX_ATTEMPTS: Final = 10

State = dict[StateKey, EventRow]


class RoomImporter:
    """Make a room ours that others had before, or had without us for a while."""

    def __init__(
        self,
        *,
        server_name: str,
        rooms: Rooms,
        room_store: RoomStore,
        writer: RoomWriter,
        appender: Appender,
        tail: Tail,
        graph: EventGraphStore,
        imports: RoomImportStore,
        outliers: Outliers,
        nids: Nids,
    ) -> None:
        self._server_name = server_name
        self._rooms = rooms
        self._room_store = room_store
        self._writer = writer
        self._appender = appender
        self._tail = tail
        self._graph = graph
        self._imports = imports
        self._outliers = outliers
        self._nids = nids

    async def import_room(
        self,
        *,
        room_id: str,
        version: RoomVersion,
        state: Sequence[object],
        auth_chain: Sequence[object],
        latest: object,
        keys: KeyRing,
    ) -> EventRow:
        """Take a room over as of the event ``latest`` (our user's join), and give its row.

        ``state`` are the PDUs of the state before ``latest``, ``auth_chain`` those that they and it cite.
        Each is checked (form, signature, hash, what it cites); those of the state that do not pass are not
        part of it. All is stored in slices before the room becomes visible, at once, through the log. The
        room's earlier history with us, if any, stays, and what changed meanwhile is told.

        Raises ``M_BAD_JSON`` for an answer that is no room, AuthError if the state does not allow
        ``latest``, 413 ``M_TOO_LARGE``, 503 while another request imports the same room.
        """
        if len(state) + len(auth_chain) > MAX_STATE:
            raise MatrixError("M_TOO_LARGE", 413, f"A room of over {MAX_STATE} state events is too large")
        await self._nids.reserve()
        room = RoomName(await self._imports.room_nid(room_id, self._nids.take()), room_id, version)
        async with self._imports.alone(room.room_nid):
            stored = await self._outliers.store(room, [*auth_chain, *state, latest], keys)
            before = _state(stored, stored.ids[len(auth_chain) : -1], version)
            row = _latest_row(stored, before)
            if row.pos:
                return row  # an earlier request with the same event came this far
            return await self._writer.take_turn(room_id, lambda: self._make_visible(room, row, before))

    async def _make_visible(self, room: RoomName, row: EventRow, before: State) -> EventRow:
        await self._nids.reserve()
        snapshots = self._snapshots(room, row, before)
        await self._graph.store_snapshots(snapshots)
        standings = await self._graph.standings(row.event.prev_event_ids)
        unknown = [e for e in row.event.prev_event_ids if e not in standings or not standings[e].is_placed]
        await self._graph.store_edges(row, unknown)
        row.snapshot_nid = snapshots[0].snapshot_nid
        after = {**before, row.key: row} if row.state_key is not None else before
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            write = await self._write(room, row, after, snapshots[-1].snapshot_nid)
            try:
                pos = await self._appender.append_room(write)
            except HeadMoved:
                await self._writer.overtaken(room.room_id, attempt)
                continue
            self._rooms.drop(room.room_id)
            await self._tail.wait_for(pos)
            return row
        raise DatabaseUnavailable

    def _snapshots(self, room: RoomName, row: EventRow, before: State) -> list[Snapshot]:
        full = BitMap64(other.event_nid for other in before.values()).serialize()
        snapshots = [Snapshot(self._nids.take(), room.room_nid, None, 0, full, None, None)]
        if row.state_key is not None:
            removed = [row.replaces_nid] if row.replaces_nid is not None else []
            parent, nid = snapshots[0].snapshot_nid, self._nids.take()
            snapshots.append(Snapshot(nid, room.room_nid, parent, 1, None, [row.event_nid], removed))
        return snapshots

    async def _write(self, room: RoomName, row: EventRow, after: State, snapshot_nid: int) -> RoomWrite:
        loaded = await self._room_store.load(room.room_id)
        if loaded is None:
            old: State = {}
            # Members of ours are told of through the log, so that what is held of them is read anew.
            told = {key: r for key, r in after.items() if r is row or self._is_ours(key)}
            await self._imports.stage_state(room.room_nid, [r for key, r in after.items() if key not in told])
        else:
            old = {r.key: r for r in loaded.state}
            told = after
        changes = _changes(row, old, told)
        row.state_changes = tuple((change.type, change.state_key) for change in changes)
        return RoomWrite(
            room_nid=room.room_nid,
            room_id=room.room_id,
            version_id=room.version.identifier,
            expected_head=loaded.stored.head if loaded is not None else 0,
            snapshot_nid=snapshot_nid,
            extremities=[row.event_nid],
            events=[row],
            txn_scopes={},
            snapshots=[],
            changes=changes,
            relations=[],
            redactions=[],
        )

    def _is_ours(self, key: StateKey) -> bool:
        return key[0] == "m.room.member" and key[1].partition(":")[2] == self._server_name


def _latest_row(stored: StoredOutliers, before: State) -> EventRow:
    event_id = stored.ids[-1]
    row = None if event_id is None else stored.rows.get(event_id)
    if row is None or event_id in stored.rejected:
        raise bad_json("The event by which the room is joined is not valid")
    check_auth(row.event, {key: other.event for key, other in before.items()})
    if row.state_key is not None and (replaced := before.get(row.key)) is not None:
        row.replaces_nid = replaced.event_nid
    return row


def _changes(at: EventRow, old: Mapping[StateKey, EventRow], new: State) -> list[StateChange]:
    changes = [
        state_change(at, key, row, old.get(key))
        for key, row in new.items()
        if key not in old or old[key].event_nid != row.event_nid
    ]
    changes += [state_change(at, key, None, row) for key, row in old.items() if key not in new]
    return changes


def _state(stored: StoredOutliers, wanted: Sequence[str | None], version: RoomVersion) -> State:
    state: State = {}
    for event_id in wanted:
        row = None if event_id is None else stored.rows.get(event_id)
        if row is None or row.event_id in stored.rejected:
            continue
        if row.state_key is None or row.key in state:
            raise bad_json("The state of the room has two events for one key, or an event that is not state")
        state[row.key] = row
    create = state.get(CREATE_KEY)
    if create is None:
        raise bad_json("The state of the room has no create event")
    if create.event.content.get("room_version", "1") != version.identifier:
        raise bad_json("The room is not of the version that it was said to be of")
    return state
