"""State resolution of room version 1. Its known faults (state that resets) are part of the protocol.

Source: room version 1, "State resolution".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from ranvier.spec.errors import MatrixError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import CREATE_KEY, auth_event_keys, check_auth
from ranvier.spec.state_sets import StateMap, StateSplit

_AUTH_TYPES = ("m.room.power_levels", "m.room.join_rules", "m.room.member")


def resolve(split: StateSplit, events: Mapping[int, Event]) -> dict[StateKey, int]:
    """Resolve states of a room of version 1; see ``state_res.Resolution``."""
    # "Start by setting R to the union of the states to be resolved, excluding any conflicting events."
    split = split.as_version_1()
    resolved, conflicts = dict(split.unconflicted), split.conflicts
    # "First we resolve conflicts between m.room.power_levels events … Repeat the above process for
    # conflicts between m.room.join_rules events. Repeat … m.room.member events."
    for event_type in _AUTH_TYPES:
        chosen = {
            key: _resolve_auth_conflict(key, nids, resolved, events)
            for key, nids in conflicts.items()
            if key[0] == event_type
        }
        # Only now: members are judged each by the state before all of them, so that their order is nothing.
        resolved.update(chosen)
    resolved.update(_resolve_others(conflicts, resolved, events))
    return resolved


def _resolve_auth_conflict(
    key: StateKey, nids: Iterable[int], resolved: StateMap, events: Mapping[int, Event]
) -> int:
    # "Sort the list by ascending depth then descending sha1(event_id). Add the first event in the list to R."
    chosen, *others = reversed(_by_depth(nids, events))
    # "For each subsequent event in the list, check that the event would be allowed … for a room in state R.
    # If the event would be allowed, then update R with the event and continue with the next event in the
    # list. If it would not be allowed, stop"
    for nid in others:
        if not _is_allowed(events[nid], {**_auth_state(events[nid], resolved), key: chosen}, events):
            break
        chosen = nid
    return chosen


def _resolve_others(
    conflicts: Mapping[StateKey, Iterable[int]], resolved: StateMap, events: Mapping[int, Event]
) -> dict[StateKey, int]:
    """Resolve what does not bear on authorisation, each key on its own."""
    chosen: dict[StateKey, int] = {}
    for key, nids in conflicts.items():
        if key[0] in _AUTH_TYPES:
            continue
        # "just pick the event with the highest depth and lowest sha1(event_id) that passes authentication
        # in R and add it to R"
        candidates = _by_depth(nids, events)
        chosen[key] = next(
            (
                nid
                for nid in candidates
                if _is_allowed(events[nid], _auth_state(events[nid], resolved), events)
            ),
            # NOTSPEC: the specification does not say what follows if none passes. The servers that still
            # have such rooms take the last of the list, and so do we, not to split the room.
            candidates[-1],
        )
    return chosen


def _by_depth(nids: Iterable[int], events: Mapping[int, Event]) -> list[int]:
    """Sort by descending depth, then ascending SHA-1 of the id."""
    return sorted(
        nids,
        key=lambda nid: (
            -events[nid].depth,
            hashlib.sha1(events[nid].event_id.encode(), usedforsecurity=False).digest(),
        ),
    )


def _auth_state(event: Event, resolved: StateMap) -> dict[StateKey, int]:
    keys = auth_event_keys(
        event.version,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
    )
    return {key: resolved[key] for key in (CREATE_KEY, *keys) if key in resolved}


def _is_allowed(event: Event, state: StateMap, events: Mapping[int, Event]) -> bool:
    try:
        check_auth(event, {key: events[nid] for key, nid in state.items()})
    except MatrixError:
        return False
    return True
