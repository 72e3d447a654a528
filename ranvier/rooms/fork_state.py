"""States of a room where its history forks: after any event, and resolved over several."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from pyroaring import BitMap64

from ranvier.rooms.draft import steps_before_full_copy
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import POWER_LEVELS_KEY
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.state_res import Resolution
from ranvier.storage.event_graph import EventGraphStore, bitmaps
from ranvier.storage.events import EventStore
from ranvier.storage.log import Snapshot
from ranvier.storage.nids import Nids
from ranvier.storage.rooms import RoomStore
from ranvier.wire.log_rows import EventRow

R = TypeVar("R")

_MAX_SNAPSHOTS: Final = 128
_MAX_CHAINS: Final = 20_000
_MAX_KEYS: Final = 200_000
_MAX_EVENTS: Final = 5_000
_MAX_RESOLVED: Final = 64
_LARGE: Final = 5000  # states of so many events are compared beside the event loop
_MANY: Final = 64  # so many conflicts are resolved there
_PAGE: Final = 500


class State:
    """One state of a room: a stored snapshot, or what some changes make of another state.

    ``nids`` is the state itself, a set of event_nid, once somebody wanted it. ``snapshot`` is the
    ``(snapshot_nid, steps)`` that holds it, once there is one (steps are None until it was read), and
    ``pending`` its row while that is not stored. Nothing else about it ever changes.
    """

    __slots__ = ("added", "base", "nids", "pending", "removed", "snapshot")

    def __init__(
        self,
        *,
        snapshot: tuple[int, int | None] | None = None,
        nids: BitMap64 | None = None,
        base: State | None = None,
        added: Sequence[int] = (),
        removed: Sequence[int] = (),
    ) -> None:
        self.snapshot = snapshot
        self.nids = nids
        self.base = base
        self.added = added
        self.removed = removed
        self.pending: Snapshot | None = None

    def after(self, event_nid: int, replaces_nid: int | None) -> State:
        """Give the state after an accepted state event for which this is the state before."""
        return State(base=self, added=[event_nid], removed=[] if replaces_nid is None else [replaces_nid])

    def unstored(self) -> list[Snapshot]:
        """Give the snapshots that are to be stored for this one to count, parents first."""
        found: list[Snapshot] = []
        state: State | None = self
        while state is not None and state.pending is not None:
            found.append(state.pending)
            state = state.base
        found.reverse()
        return found

    def set_stored(self) -> None:
        """Note that everything that ``unstored`` gave was stored."""
        state: State | None = self
        while state is not None and state.pending is not None:
            below = state.base
            state.pending = state.base = None  # from now on it is read back by its snapshot
            state.added = state.removed = ()
            state = below


def stored_state(snapshot_nid: int | None, steps: int | None = None) -> State:
    """Give the state of a stored snapshot; without one, the empty state before a create event."""
    return State(nids=BitMap64()) if not snapshot_nid else State(snapshot=(snapshot_nid, steps))


def state_after(row: EventRow) -> State:
    """Give the state after an accepted event that is stored."""
    before = stored_state(row.snapshot_nid)
    return before if row.state_key is None else before.after(row.event_nid, row.replaces_nid)


class ForkStates:
    """Compute states for the receiver of events.

    What it keeps in memory (snapshots, auth chains, resolutions) never changes, so it need not follow the
    log; each is bounded. Work on large states is done in ``pool``, which should be of threads: they share
    what is large, and the event loop gets the processor back every few milliseconds.
    """

    def __init__(
        self,
        *,
        graph: EventGraphStore,
        events: EventStore,
        room_store: RoomStore,
        nids: Nids,
        pool: Executor,
    ) -> None:
        self._graph = graph
        self._events = events
        self._room_store = room_store
        self._nids = nids
        self._pool = pool
        self._snapshots: OrderedDict[int, tuple[BitMap64, int]] = OrderedDict()
        self._chains: dict[int, BitMap64] = {}
        self._keys: dict[int, StateKey] = {}
        self._events_held: dict[int, Event] = {}
        self._nids_held: dict[str, int] = {}
        self._resolved: OrderedDict[frozenset[bytes], State] = OrderedDict()

    # -- states --------------------------------------------------------------------------------------

    async def nids_of(self, state: State) -> BitMap64:
        """Give the events of a state. Do not change the answer."""
        changed: list[State] = []
        while state.nids is None and state.base is not None:
            changed.append(state)
            state = state.base
        if state.nids is None:
            assert state.snapshot is not None
            state.nids, steps = await self._read(state.snapshot[0])
            state.snapshot = (state.snapshot[0], steps)
        nids = state.nids
        for later in reversed(changed):
            nids = later.nids = (nids - BitMap64(later.removed)) | BitMap64(later.added)
        return nids

    async def _read(self, snapshot_nid: int) -> tuple[BitMap64, int]:
        known = self._snapshots.get(snapshot_nid)
        if known is None:
            known = await self._room_store.snapshot_and_steps(snapshot_nid)
            _keep(self._snapshots, snapshot_nid, known, _MAX_SNAPSHOTS)
        return known

    async def snapshot_of(self, state: State, room_nid: int, size: int) -> tuple[int, int]:
        """Give the ``(snapshot_nid, steps)`` of a state, making one that is ``pending`` where there is none.

        ``size`` is about how many events the state has.
        """
        if state.snapshot is None:
            await self._make_snapshot(state, room_nid, size)
        assert state.snapshot is not None
        if state.snapshot[1] is None:
            state.snapshot = (state.snapshot[0], (await self._read(state.snapshot[0]))[1])
        nid, steps = state.snapshot
        assert steps is not None
        return nid, steps

    async def _make_snapshot(self, state: State, room_nid: int, size: int) -> None:
        steps, parent = 0, None
        changes = len(state.added) + len(state.removed)
        # A change as large as the state itself is better kept as a state.
        if state.base is not None and changes <= max(32, size // 8):
            if state.base.snapshot is not None or state.base.base is not None:
                parent, steps = await self.snapshot_of(state.base, room_nid, size)
            steps += 1
        nid = self._nids.take()
        if parent is None or steps >= steps_before_full_copy(size):
            full = (await self.nids_of(state)).serialize()
            state.pending, steps = Snapshot(nid, room_nid, None, 0, full, None, None), 0
            # It rests on nothing, but `unstored` walks on: what is below may be wanted by others.
        else:
            state.pending = Snapshot(
                nid, room_nid, parent, steps, None, list(state.added), list(state.removed)
            )
        state.snapshot = (nid, steps)

    async def differences(
        self,
        old: State,
        new: State,
        *,
        current: Mapping[StateKey, EventRow],
        fresh: Mapping[int, EventRow],
    ) -> dict[StateKey, EventRow | None]:
        """Say what becomes of each key that is not the same in two states (None: it goes away)."""
        before, after = await self.nids_of(old), await self.nids_of(new)
        gone = await self.keys_of(before - after, current, fresh)
        changes: dict[StateKey, EventRow | None] = dict.fromkeys(gone[nid] for nid in before - after)
        rows = await self.rows(after - before, fresh)
        changes.update((row.key, row) for row in rows.values())
        return changes

    # -- resolving -----------------------------------------------------------------------------------

    async def resolve(
        self,
        version: RoomVersion,
        states: Sequence[State],
        *,
        current: Mapping[StateKey, EventRow],
        fresh: Mapping[int, EventRow],
    ) -> State:
        """Give the state that several resolve to: one of them if it equals it.

        ``current`` is the room's current state, in which most of what is wanted is found; ``fresh`` are
        events by nid that are not stored yet.
        """
        distinct: list[State] = []
        for state in states:
            nids = await self.nids_of(state)
            if all(nids != other.nids for other in distinct):
                distinct.append(state)
        if len(distinct) == 1:
            return distinct[0]
        memory = frozenset(_digest(state) for state in distinct)
        resolved = self._resolved.get(memory)
        if resolved is None:
            resolved = await self._resolve(version, distinct, current, fresh)
            _keep(self._resolved, memory, resolved, _MAX_RESOLVED)
        return resolved

    async def _resolve(
        self,
        version: RoomVersion,
        states: Sequence[State],
        current: Mapping[StateKey, EventRow],
        fresh: Mapping[int, EventRow],
    ) -> State:
        sets = [state.nids for state in states if state.nids is not None]
        union = BitMap64().union(*sets)
        keys = await self.keys_of(union, current, fresh)
        large = len(union) >= _LARGE
        many = large or len(union) - len(BitMap64.intersection(*sets)) >= _MANY
        resolution: Resolution = await self._run(large, _compare, version, sets, keys)
        chains: dict[int, BitMap64] = {}
        while missing := await self._run(large, resolution.missing_chains, chains):
            chains.update(await self._load_chains(missing, fresh, large))
        events, rejected = await self._load_events(resolution, chains, fresh, many)
        state: dict[StateKey, int] = await self._run(many, _compute, resolution, events, chains, rejected)
        return _nearest(states, BitMap64(state.values()))

    async def keys_of(
        self, nids: Iterable[int], current: Mapping[StateKey, EventRow], fresh: Mapping[int, EventRow]
    ) -> dict[int, StateKey]:
        """Give a table with the state keys of (at least) these state events. Do not change it."""
        wanted = BitMap64(nids)
        keys = self._keys
        missing = [nid for nid in wanted if nid not in keys]
        if missing and len(keys) > _MAX_KEYS:
            # A new one: what was given before stays whole.
            keys = self._keys = {}
        if missing:
            keys.update((row.event_nid, key) for key, row in current.items())
            keys.update((nid, row.key) for nid, row in fresh.items() if row.event.is_state)
            keys.update(await self._graph.keys_of(nid for nid in wanted if nid not in keys))
        return keys

    async def _load_chains(
        self, nids: BitMap64, fresh: Mapping[int, EventRow], large: bool
    ) -> dict[int, BitMap64]:
        if len(self._chains) > _MAX_CHAINS:
            self._chains.clear()
        found = {nid: self._chains[nid] for nid in nids if nid in self._chains}
        wanted = [nid for nid in nids if nid not in found]
        stored = await self._graph.auth_chains([nid for nid in wanted if nid not in fresh])
        loaded = await self._run(
            large, bitmaps, stored | {nid: fresh[nid].auth_chain for nid in wanted if nid in fresh}
        )
        self._chains.update(loaded)
        return found | loaded

    async def _load_events(
        self,
        resolution: Resolution,
        chains: Mapping[int, BitMap64],
        fresh: Mapping[int, EventRow],
        large: bool,
    ) -> tuple[dict[int, Event], set[int]]:
        needed = await self._run(large, resolution.needed_events, chains)
        events = await self._load(needed.nids, fresh)
        auth = await self._run(large, resolution.needed_auth_events, events)
        events |= await self._load(auth.nids, fresh)
        events |= await self._load(await self._nids_of_ids(auth.event_ids, fresh), fresh)
        candidates = needed.power_levels_among - BitMap64(events)
        keys = await self.keys_of(candidates, {}, fresh)
        levels = [nid for nid in candidates if keys.get(nid) == POWER_LEVELS_KEY]
        events |= await self._load(levels, fresh)
        return events, await self._graph.rejected(events)

    async def _nids_of_ids(self, event_ids: Collection[str], fresh: Mapping[int, EventRow]) -> list[int]:
        known = {row.event_id: nid for nid, row in fresh.items()} if fresh else {}
        held = self._nids_held
        wanted = [event_id for event_id in event_ids if event_id not in held and event_id not in known]
        if wanted:
            held.update(await self._events.nids_of(wanted))
        nids = [known.get(event_id, held.get(event_id)) for event_id in event_ids]
        return [nid for nid in nids if nid is not None]

    async def _load(self, nids: Iterable[int], fresh: Mapping[int, EventRow]) -> dict[int, Event]:
        """Load events for the rules, which see them as they were signed."""
        wanted = list(nids)
        if len(self._events_held) > _MAX_EVENTS:
            self._events_held.clear()
            self._nids_held.clear()
        found = {nid: self._events_held[nid] for nid in wanted if nid in self._events_held}
        rows = await self.rows([nid for nid in wanted if nid not in found], fresh)
        loaded = {nid: row.event for nid, row in rows.items()}
        self._events_held.update(loaded)
        return found | loaded

    async def rows(self, nids: Iterable[int], fresh: Mapping[int, EventRow]) -> dict[int, EventRow]:
        """Load events by their integers, in pages."""
        found: dict[int, EventRow] = {}
        wanted = []
        for nid in nids:
            if (row := fresh.get(nid)) is not None:
                found[nid] = row
            else:
                wanted.append(nid)
        for start in range(0, len(wanted), _PAGE):
            found |= await self._events.by_nids(wanted[start : start + _PAGE])
        return found

    async def rows_at(
        self,
        state: State,
        keys: Sequence[StateKey],
        *,
        room_nid: int,
        current: Mapping[StateKey, EventRow],
        fresh: Mapping[int, EventRow],
    ) -> dict[StateKey, EventRow]:
        """Give the events that a state has at some keys."""
        nids = await self.nids_of(state)
        found = {key: row for key in keys if (row := current.get(key)) is not None and row.event_nid in nids}
        found.update((row.key, row) for nid, row in fresh.items() if nid in nids and row.key in keys)
        missing = [key for key in keys if key not in found]
        if missing:
            stored = await self._graph.nids_at(room_nid, missing)
            wanted = [nid for candidates in stored.values() for nid in candidates if nid in nids]
            found.update((row.key, row) for row in (await self.rows(wanted, fresh)).values())
        return found

    async def _run(self, large: bool, function: Callable[..., R], *args: Any) -> R:
        if not large:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)


def _compare(version: RoomVersion, sets: Sequence[BitMap64], keys: Mapping[int, StateKey]) -> Resolution:
    return Resolution(version, [{keys[nid]: nid for nid in state} for state in sets])


def _compute(
    resolution: Resolution,
    events: Mapping[int, Event],
    chains: Mapping[int, BitMap64],
    rejected: set[int],
) -> dict[StateKey, int]:
    return resolution.resolve(events, chains, rejected=rejected)


def _nearest(states: Sequence[State], nids: BitMap64) -> State:
    """Write a resolved state as changes to the state that is most like it."""
    distances = [(len((state.nids or BitMap64()) ^ nids), n) for n, state in enumerate(states)]
    distance, n = min(distances)
    nearest = states[n]
    if not distance or nearest.nids is None:
        return nearest
    return State(nids=nids, base=nearest, added=list(nids - nearest.nids), removed=list(nearest.nids - nids))


def _digest(state: State) -> bytes:
    assert state.nids is not None
    return hashlib.blake2b(state.nids.serialize(), digest_size=16).digest()


K = TypeVar("K")
V = TypeVar("V")


def _keep(cache: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
