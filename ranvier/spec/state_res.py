"""State resolution: which state follows from several, the same on every server of the room.

Pure: the caller loads first, then computes. In this module and its two algorithms an event goes by its
``nid``, the integer that the storage interned its id as; auth chains are roaring bitmaps of nids, so that
the auth difference is set arithmetic and not a walk.

What the caller does, for states that differ (each step costs one query and needs the one before):

1. make a ``Resolution``; if its ``is_trivial``, go to 5;
2. load auth chains until ``missing_chains`` names no more (none for version 1 rooms; at most three rounds);
3. load what ``needed_events`` names;
4. with those, load what ``needed_auth_events`` names;
5. call ``resolve``, in another process if the state is large.

Source: the "State resolution" of room versions 1, 2 and 12.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyroaring import BitMap64

from ranvier.spec import state_res_v1, state_res_v2
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, JOIN_RULES_KEY, POWER_LEVELS_KEY, auth_event_keys
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.state_sets import StateMap, StateSplit

_ROOM_KEYS: Final = (CREATE_KEY, POWER_LEVELS_KEY, JOIN_RULES_KEY)


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


class Resolution:
    """Resolve states of one room to one state: say what to load, then compute.

    What the states have in common is found once, when it is made. It can be pickled.
    """

    def __init__(self, version: RoomVersion, state_sets: Sequence[StateMap]) -> None:
        self._version = version
        self._split = StateSplit.of(state_sets)
        self._subgraph = version.state_resolution == "v2.1"
        self._full: BitMap64 | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether the states are equal, so that nothing need be loaded."""
        return not self._split.conflicts

    def missing_chains(self, auth_chains: Mapping[int, BitMap64]) -> BitMap64:
        """Name events whose auth chains are to be loaded too; call again with them, until it names none.

        ``auth_chains`` are those at hand: for each event its full auth chain, itself not included.
        """
        if self.is_trivial or self._version.state_resolution == "v1":
            return BitMap64()
        return state_res_v2.missing_chains(self._split, auth_chains, subgraph=self._subgraph)

    def needed_events(self, auth_chains: Mapping[int, BitMap64]) -> NeededEvents:
        """Name the events of the conflict and the candidates for the mainline.

        Needs every chain that ``missing_chains`` names.
        """
        if self.is_trivial:
            return NeededEvents(BitMap64(), BitMap64())
        if self._version.state_resolution == "v1":
            split = self._split.as_version_1()
            return NeededEvents(split.conflicted() | _nids_at(_ROOM_KEYS, split.unconflicted), BitMap64())
        full = self._full_conflicted_set(auth_chains)
        unconflicted_levels = _nids_at((POWER_LEVELS_KEY,), self._split.unconflicted)
        mainline = BitMap64().union(*(auth_chains[nid] for nid in full | unconflicted_levels))
        nids = full | _nids_at(_ROOM_KEYS, self._split.unconflicted)
        return NeededEvents(nids, mainline - nids)

    def needed_auth_events(self, events: Mapping[int, Event]) -> NeededAuthEvents:
        """Name what the auth checks of loaded events need beyond them.

        ``events`` are those that ``needed_events`` named in ``nids``; if more are given, more is named.
        """
        if self.is_trivial:
            return NeededAuthEvents(BitMap64(), frozenset())
        cited: set[str] = set()
        nids = BitMap64()
        unconflicted = self._split.as_version_1().unconflicted
        for event in events.values():
            nids |= _nids_at(_auth_keys(event), unconflicted)
            if self._version.state_resolution != "v1":
                cited.update(event.auth_event_ids)
        cited.difference_update(event.event_id for event in events.values())
        return NeededAuthEvents(nids - BitMap64(events), frozenset(cited))

    def resolve(
        self,
        events: Mapping[int, Event],
        auth_chains: Mapping[int, BitMap64],
        *,
        rejected: Container[int] = (),
    ) -> dict[StateKey, int]:
        """Compute the resolved state; the order in which the states were given does not matter.

        ``events`` and ``auth_chains`` hold at least what was named (``KeyError`` if a conflicted event is
        missing; an event that is cited and missing counts as not cited). ``rejected`` holds the nids of
        events that were rejected: they do not authorise others.
        """
        if self.is_trivial:
            return dict(self._split.unconflicted)
        if self._version.state_resolution == "v1":
            return state_res_v1.resolve(self._split, events)
        full = self._full_conflicted_set(auth_chains)
        return state_res_v2.resolve(self._split, full, events, auth_chains, rejected, subgraph=self._subgraph)

    def _full_conflicted_set(self, auth_chains: Mapping[int, BitMap64]) -> BitMap64:
        if self._full is None:
            self._full = state_res_v2.full_conflicted_set(self._split, auth_chains, subgraph=self._subgraph)
        return self._full


def resolve(
    version: RoomVersion,
    state_sets: Sequence[StateMap],
    events: Mapping[int, Event],
    auth_chains: Mapping[int, BitMap64],
    *,
    rejected: Container[int] = (),
) -> dict[StateKey, int]:
    """Resolve states when all is loaded; see ``Resolution.resolve``. Equal states need nothing."""
    return Resolution(version, state_sets).resolve(events, auth_chains, rejected=rejected)


def _nids_at(keys: Iterable[StateKey], state: StateMap) -> BitMap64:
    return BitMap64(state[key] for key in keys if key in state)


def _auth_keys(event: Event) -> list[StateKey]:
    return auth_event_keys(
        event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
