"""Comparing several states of a room: what they agree on and where they conflict.

Source: "Unconflicted state map and conflicted state set" of room version 2; "conflict" of room version 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ranvier.spec.event import StateKey

StateMap = Mapping[StateKey, int]
"""A state of a room: which event, by its nid, is at each ``(type, state_key)``."""

Conflicts = dict[StateKey, set[int]]
"""The events that the states have at each key that they do not agree on."""


def conflicted_keys(state_sets: Sequence[StateMap]) -> set[StateKey]:
    """Find the keys that are not in every state with the same event."""
    first = state_sets[0]
    keys: set[StateKey] = set()
    for other in state_sets[1:]:
        get = other.get
        keys.update([key for key, nid in first.items() if get(key) != nid])
        # What is absent from the first was not looked at, unless the other has no more keys than were found.
        keys.update(other.keys() - first.keys())
    return keys


def split_state(state_sets: Sequence[StateMap]) -> tuple[dict[StateKey, int], Conflicts]:
    """Divide states into the unconflicted state map and the conflicted state, as versions 2 and 12 do.

    "If a given key K is present in every S_i with the same value V in each state map, then the pair
    belongs to the unconflicted state map. Otherwise, V belongs to the conflicted state set."
    """
    keys = conflicted_keys(state_sets)
    unconflicted = dict(state_sets[0])
    conflicts: Conflicts = {}
    for key in keys:
        unconflicted.pop(key, None)
        conflicts[key] = {state[key] for state in state_sets if key in state}
    return unconflicted, conflicts


def split_union(state_sets: Sequence[StateMap]) -> tuple[dict[StateKey, int], Conflicts]:
    """Divide states into their union without conflicts and the conflicts, as version 1 does.

    "A conflict occurs between states where those states have different event_ids for the same
    (event_type, state_key)": a key that is in some states only, always with one event, is no conflict.
    """
    union, conflicts = split_state(state_sets)
    for key in [key for key, nids in conflicts.items() if len(nids) == 1]:
        union[key] = conflicts.pop(key).pop()
    return union, conflicts
