"""State resolution of room versions 2 to 11 (v2) and of version 12 (v2.1).

Source: room version 2 and room version 12, "State resolution". ``subgraph`` stands for v2.1 throughout: it
adds the conflicted state subgraph and starts the auth checks from an empty state.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Mapping, Sequence

from pyroaring import BitMap64

from ranvier.spec.errors import MatrixError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, POWER_LEVELS_KEY, auth_event_keys, check_auth
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.state_sets import StateMap, StateSplit

AuthChains = Mapping[int, BitMap64]


def missing_chains(split: StateSplit, auth_chains: AuthChains, *, subgraph: bool) -> BitMap64:
    """Name events whose auth chains are still to be loaded; see ``state_res.Resolution``."""
    conflicted = split.conflicted()
    missing = _without_chain(conflicted, auth_chains)
    if missing:
        return missing
    needed = BitMap64()
    if _conflicting_chains(split, auth_chains):
        needed.update(split.unconflicted.values())
    if (power_levels := split.unconflicted.get(POWER_LEVELS_KEY)) is not None:
        needed.add(power_levels)
    if subgraph:
        needed |= _subgraph_candidates(conflicted, auth_chains)
    missing = _without_chain(needed, auth_chains)
    if missing:
        return missing
    return _without_chain(full_conflicted_set(split, auth_chains, subgraph=subgraph), auth_chains)


def _without_chain(nids: BitMap64, auth_chains: AuthChains) -> BitMap64:
    return BitMap64(nid for nid in nids if nid not in auth_chains)


def full_conflicted_set(split: StateSplit, auth_chains: AuthChains, *, subgraph: bool) -> BitMap64:
    """Find the full conflicted set.

    "the union of the conflicted state set and the auth difference", in v2.1 also of "the conflicted
    state subgraph".
    """
    conflicted = split.conflicted()
    # "If C_i is the full auth chain of S_i, then the auth difference is ∪ C_i − ∩ C_i." What is
    # unconflicted adds the same chains to every C_i, so they only take away from the difference.
    full = _conflicting_chains(split, auth_chains)
    for nid in split.unconflicted.values():
        if not full:
            break
        full -= auth_chains[nid]
    full |= conflicted
    if subgraph:
        full |= _conflicted_subgraph(conflicted, auth_chains)
    return full


def _conflicting_chains(split: StateSplit, auth_chains: AuthChains) -> BitMap64:
    """Find the auth difference of the conflicted parts of the states alone."""
    chains: list[BitMap64] = []
    for state in split.state_sets:
        nids = [state[key] for key in split.conflicts if key in state]
        chains.append(BitMap64().union(*(auth_chains[nid] for nid in nids)))
    return BitMap64().union(*chains) - chains[0].intersection(*chains)


def _subgraph_candidates(conflicted: BitMap64, auth_chains: AuthChains) -> BitMap64:
    """Find the events that may be between two conflicted ones, to look at their chains."""
    candidates = BitMap64()
    for nid in conflicted:
        chain = auth_chains[nid]
        ends = chain & conflicted
        if not ends:
            continue
        between = chain - conflicted
        # What is in the chain of an end is between that end and another, if at all, and found from there.
        # The latest first: nids grow along the graph nearly always, so that few chains hold all the ends.
        while ends:
            end = ends.max()
            between -= auth_chains[end]
            ends -= auth_chains[end]
            ends.discard(end)
        candidates |= between
    return candidates


def _conflicted_subgraph(conflicted: BitMap64, auth_chains: AuthChains) -> BitMap64:
    """Find the conflicted state subgraph, without its end points.

    "Starting from an event in the conflicted state set and following auth_events edges may lead to
    another event in the conflicted state set. The union of all such paths between any pair of events in
    the conflicted state set (including endpoints) forms a subgraph".
    """
    candidates = _subgraph_candidates(conflicted, auth_chains)
    return BitMap64(nid for nid in candidates if not auth_chains[nid].isdisjoint(conflicted))


def resolve(
    split: StateSplit,
    full: BitMap64,
    events: Mapping[int, Event],
    auth_chains: AuthChains,
    rejected: Container[int],
    *,
    subgraph: bool,
) -> dict[StateKey, int]:
    """Resolve states of a room of version 2 or later, given their full conflicted set."""
    room = _Room(events, rejected, _find_create(split.state_sets, events))
    # 1. "Select the set X of all power events that appear in the full conflicted set. For each such power
    #    event P, enlarge X by adding the events in the auth chain of P which also belong to the full
    #    conflicted set. Sort X into a list using the reverse topological power ordering."
    power_events = BitMap64(nid for nid in full if _is_power_event(events[nid]))
    for nid in BitMap64(power_events):
        power_events |= auth_chains[nid] & full
    # 2. "Apply the iterative auth checks algorithm, starting from the unconflicted state map (v2.1: an
    #    empty state map), to the list of events from the previous step"
    state: dict[StateKey, int] = {} if subgraph else dict(split.unconflicted)
    room.apply_allowed(state, room.sort_by_power(power_events, auth_chains))
    # 3. "Take all remaining events that weren't picked in step 1 and order them by the mainline ordering
    #    based on the power level in the partially resolved state obtained in step 2."
    others = room.sort_by_mainline(full - power_events, state.get(POWER_LEVELS_KEY))
    # 4. "Apply the iterative auth checks algorithm on the partial resolved state and the list"
    room.apply_allowed(state, others)
    # 5. "Update the result by replacing any event with the event with the same key from the unconflicted
    #    state map, if such an event exists"
    state.update(split.unconflicted)
    return state


def _is_power_event(event: Event) -> bool:
    # "A power event is a state event with type m.room.power_levels or m.room.join_rules, or a state event
    # with type m.room.member where the membership is leave or ban and the sender does not match the
    # state_key."
    if event.type == "m.room.member":
        return event.content.get("membership") in ("leave", "ban") and event.sender != event.state_key
    return event.type in ("m.room.power_levels", "m.room.join_rules")


def _find_create(state_sets: Sequence[StateMap], events: Mapping[int, Event]) -> Event | None:
    """Find the create event, by which a version 12 event is judged though it does not cite it."""
    creates = [events[nid] for nid in {state[CREATE_KEY] for state in state_sets if CREATE_KEY in state}]
    return min(creates, key=lambda event: event.event_id, default=None)


class _Room:
    """Order and check events of one resolution, remembering what was read from them."""

    def __init__(self, events: Mapping[int, Event], rejected: Container[int], create: Event | None) -> None:
        self._events = events
        self._rejected = rejected
        self._create = create
        self._nid_of = {event.event_id: nid for nid, event in events.items()}
        self._cited: dict[int, dict[StateKey, int]] = {}
        self._levels: dict[str | None, PowerLevels] = {}

    def _cited_by(self, nid: int) -> dict[StateKey, int]:
        """Give the state events, as far as they were loaded, that an event cites."""
        cited = self._cited.get(nid)
        if cited is None:
            cited = self._cited[nid] = {}
            for event_id in self._events[nid].auth_event_ids:
                auth_nid = self._nid_of.get(event_id)
                if auth_nid is not None and self._events[auth_nid].is_state:
                    cited[self._events[auth_nid].key] = auth_nid
        return cited

    def _power_levels(self, event: Event | None, create: Event) -> PowerLevels:
        event_id = None if event is None else event.event_id
        levels = self._levels.get(event_id)
        if levels is None:
            levels = self._levels[event_id] = PowerLevels.of(event, create)
        return levels

    def _sender_level(self, nid: int) -> int:
        # "x's sender has greater power level than y's sender, when looking at their respective auth_events"
        if self._create is None:
            return 0
        levels_nid = self._cited_by(nid).get(POWER_LEVELS_KEY)
        event = None if levels_nid is None else self._events[levels_nid]
        return self._power_levels(event, self._create).user_level(self._events[nid].sender)

    # -- orderings ---------------------------------------------------------------------

    def sort_by_power(self, nids: BitMap64, auth_chains: AuthChains) -> list[int]:
        """Sort by the reverse topological power ordering, from earliest to latest.

        "using Kahn's algorithm for topological sorting, and at each step selecting, among all the
        candidate vertices, the smallest vertex using the above comparison relation".
        """
        later: dict[int, list[int]] = {nid: [] for nid in nids}
        waiting_for: dict[int, int] = {}
        for nid in nids:
            before = self._nearest(nid, nids, auth_chains)
            waiting_for[nid] = len(before)
            for earlier in before:
                later[earlier].append(nid)
        ready = [self._power_order(nid) for nid in nids if not waiting_for[nid]]
        heapq.heapify(ready)
        ordered: list[int] = []
        while ready:
            nid = heapq.heappop(ready)[-1]
            ordered.append(nid)
            for follower in later[nid]:
                waiting_for[follower] -= 1
                if not waiting_for[follower]:
                    heapq.heappush(ready, self._power_order(follower))
        return ordered

    def _nearest(self, nid: int, nids: BitMap64, auth_chains: AuthChains) -> BitMap64:
        """Give ancestors of an event among ``nids`` that between them have all its others behind them."""
        ancestors = auth_chains[nid] & nids
        nearest = BitMap64(cited for cited in self._cited_by(nid).values() if cited in ancestors)
        ancestors -= nearest
        for cited in nearest:
            ancestors -= auth_chains[cited]
        # What is left is reached only by way of events that are not among them.
        return nearest | ancestors

    def _power_order(self, nid: int) -> tuple[int, int, str, int]:
        event = self._events[nid]
        return (-self._sender_level(nid), event.origin_server_ts, event.event_id, nid)

    def sort_by_mainline(self, nids: Iterable[int], power_levels: int | None) -> list[int]:
        """Sort by the mainline ordering based on a power-levels event, from smallest to largest."""
        # "The mainline of P_0 is the list of events [P_0, P_1, …, P_n]", each the power-levels event in
        # the auth_events of the one before.
        positions: dict[int | None, int] = {}
        while power_levels is not None and power_levels not in positions:
            positions[power_levels] = len(positions)
            power_levels = self._cited_by(power_levels).get(POWER_LEVELS_KEY)
        # "Otherwise set i = ∞, where ∞ is a sentinel value greater than any integer."
        positions[None] = len(positions)

        def order(nid: int) -> tuple[int, int, str]:
            event = self._events[nid]
            # "x < y if the mainline position of x is greater than the mainline position of y", then by
            # origin_server_ts, then by event_id
            return (-self._mainline_position(nid, positions), event.origin_server_ts, event.event_id)

        return sorted(nids, key=order)

    def _mainline_position(self, nid: int, positions: dict[int | None, int]) -> int:
        # "Find the smallest index j ≥ 1 for which e_j belongs to the mainline of P." What is walked over is
        # remembered, so that all events together walk each power-levels event once.
        walked: list[int] = []
        current = self._cited_by(nid).get(POWER_LEVELS_KEY)
        while current is not None and current not in positions:
            walked.append(current)
            current = self._cited_by(current).get(POWER_LEVELS_KEY)
        position = positions[current]
        positions.update(dict.fromkeys(walked, position))
        return position

    # -- iterative auth checks ---------------------------------------------------------

    def apply_allowed(self, state: dict[StateKey, int], ordered: Iterable[int]) -> None:
        """Apply to ``state``, in place, each event in turn that the state then allows.

        "If the state event is not allowed by the authorisation rules, then the event is ignored."
        """
        for nid in ordered:
            event = self._events[nid]
            if self._is_allowed(nid, event, state):
                state[event.key] = nid

    def _is_allowed(self, nid: int, event: Event, state: StateMap) -> bool:
        if self._create is None or not event.is_state:
            return False
        auth_state = self._auth_state(nid, event, state)
        levels = self._power_levels(auth_state.get(POWER_LEVELS_KEY), self._create)
        try:
            check_auth(event, auth_state, levels)
        except MatrixError:
            return False
        return True

    def _auth_state(self, nid: int, event: Event, state: StateMap) -> dict[StateKey, Event]:
        keys = auth_event_keys(
            event.version,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
        )
        auth_state: dict[StateKey, Event] = {}
        if self._create is not None:
            auth_state[CREATE_KEY] = self._create
        for key in keys:
            auth_nid = state.get(key)
            # "If a (event_type, state_key) key that is required for checking the authorisation rules is not
            # present in the state, then the appropriate state event from the event's auth_events is used
            # if the auth event is not rejected."
            if auth_nid is None:
                auth_nid = self._cited_by(nid).get(key)
                if auth_nid is not None and auth_nid in self._rejected:
                    auth_nid = None
            if auth_nid is not None:
                auth_state[key] = self._events[auth_nid]
        return auth_state
