"""State resolution: which state follows from several, the same on every server of the room.

Pure: the caller loads first, then computes. In this module and its two algorithms an event goes by its
``nid``, the integer that the storage interned its id as; auth chains are roaring bitmaps of nids, so that
the auth difference is set arithmetic and not a walk.

What the caller does, for states that differ (each step costs one query and needs the one before):

1. load auth chains until ``missing_chains`` names no more (none for version 1 rooms; at most three rounds);
2. load what ``needed_events`` names;
3. with those, load what ``needed_auth_events`` names;
4. call ``resolve``.

Source: the "State resolution" of room versions 1, 2 and 12.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from pyroaring import BitMap64

from ranvier.spec import state_res_v1, state_res_v2
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, JOIN_RULES_KEY, POWER_LEVELS_KEY, auth_event_keys
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.state_sets import StateMap, split_state, split_union


@dataclass(frozen=True, slots=True)
class NeededEvents:
    """Name the events to load before a resolution.

    ``nids`` are needed whatever they are; of ``power_levels_among`` only those of type
    ``m.room.power_levels`` with the state key "" are (loading more does no harm).
    """

    nids: BitMap64
    power_levels_among: BitMap64


@dataclass(frozen=True, slots=True)
class NeededAuthEvents:
    """Name the rest of the events to load: some by nid, some by the id by which an event cites them."""

    nids: BitMap64
    event_ids: frozenset[str]


def missing_chains(
    version: RoomVersion, state_sets: Sequence[StateMap], auth_chains: Mapping[int, BitMap64]
) -> BitMap64:
    """Name the events whose auth chains are to be loaded too; call again with them, until it names none.

    ``auth_chains`` are those at hand: for each event its full auth chain, itself not included.
    """
    if version.state_resolution == "v1" or _all_equal(state_sets):
        return BitMap64()
    subgraph = version.state_resolution == "v2.1"
    return state_res_v2.missing_chains(state_sets, auth_chains, subgraph=subgraph)


def needed_events(
    version: RoomVersion, state_sets: Sequence[StateMap], auth_chains: Mapping[int, BitMap64]
) -> NeededEvents:
    """Name what ``resolve`` needs of the conflict: its events, and the candidates for the mainline.

    Needs every chain that ``missing_chains`` names.
    """
    if _all_equal(state_sets):
        return NeededEvents(BitMap64(), BitMap64())
    if version.state_resolution == "v1":
        union, conflicted = split_union(state_sets)
        nids = BitMap64(nid for candidates in conflicted.values() for nid in candidates)
        nids.update(union[key] for key in (CREATE_KEY, POWER_LEVELS_KEY, JOIN_RULES_KEY) if key in union)
        return NeededEvents(nids, BitMap64())
    unconflicted, _ = split_state(state_sets)
    subgraph = version.state_resolution == "v2.1"
    nids = state_res_v2.full_conflicted_set(state_sets, auth_chains, subgraph=subgraph)
    among = BitMap64()
    for nid in nids:
        among |= auth_chains[nid]
    for key in (CREATE_KEY, POWER_LEVELS_KEY, JOIN_RULES_KEY):
        if (unconflicted_nid := unconflicted.get(key)) is not None:
            nids.add(unconflicted_nid)
            if key == POWER_LEVELS_KEY:
                among |= auth_chains[unconflicted_nid]
    return NeededEvents(nids, among - nids)


def needed_auth_events(
    version: RoomVersion, state_sets: Sequence[StateMap], events: Mapping[int, Event]
) -> NeededAuthEvents:
    """Name what the auth checks of the loaded events need beyond them.

    ``events`` are those that ``needed_events`` named in ``nids``: the more are given, the more is named.
    """
    cited: set[str] = set()
    nids = BitMap64()
    union, _ = split_union(state_sets)
    loaded = {event.event_id for event in events.values()}
    for event in events.values():
        for key in _auth_keys(event):
            if (nid := union.get(key)) is not None and nid not in events:
                nids.add(nid)
        if version.state_resolution != "v1":
            cited.update(event.auth_event_ids)
    return NeededAuthEvents(nids, frozenset(cited - loaded))


def resolve(
    version: RoomVersion,
    state_sets: Sequence[StateMap],
    events: Mapping[int, Event],
    auth_chains: Mapping[int, BitMap64],
    *,
    rejected: Container[int] = (),
) -> dict[StateKey, int]:
    """Resolve states to one; the order in which they are given does not matter.

    ``events`` and ``auth_chains`` hold at least what the functions above name (``KeyError`` if a conflicted
    event is missing; an event that is cited and missing counts as not cited). ``rejected`` holds the nids
    of events that were rejected: they do not authorise others. Equal states give that state at once.
    """
    if _all_equal(state_sets):
        return dict(state_sets[0]) if state_sets else {}
    if version.state_resolution == "v1":
        return state_res_v1.resolve(state_sets, events)
    subgraph = version.state_resolution == "v2.1"
    return state_res_v2.resolve(state_sets, events, auth_chains, rejected, subgraph=subgraph)


def _all_equal(state_sets: Sequence[StateMap]) -> bool:
    return all(other is state_sets[0] or other == state_sets[0] for other in state_sets[1:])


def _auth_keys(event: Event) -> list[StateKey]:
    return auth_event_keys(
        event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
