"""Stripped state: the little that a user who is invited, or knocks, is told of a room."""

from __future__ import annotations

from typing import Any, Final

import orjson

from ranvier.rooms.room import StateView
from ranvier.spec.event import StateKey
from ranvier.spec.event_auth import CREATE_KEY
from ranvier.wire.log_rows import EventRow

MAX_BYTES: Final = 16_384
"""Stripped state is kept within its member event, which has 64 KiB in all."""

# Source: client-server API, "Stripped state": the state that it should contain, the create event first
# because it must be there.
_KEYS: Final[tuple[StateKey, ...]] = (
    CREATE_KEY,
    ("m.room.join_rules", ""),
    ("m.room.name", ""),
    ("m.room.avatar", ""),
    ("m.room.canonical_alias", ""),
    ("m.room.encryption", ""),
    ("m.room.topic", ""),
)
_SMALL_CREATE: Final = ("creator", "m.federate", "room_version", "type")


def strip(row: EventRow) -> dict[str, Any]:
    """Give the stripped form of a state event: content, sender, state key and type."""
    return {"content": row.content, "sender": row.sender, "state_key": row.state_key, "type": row.type}


def stripped_state(state: StateView, *others: EventRow) -> list[dict[str, Any]]:
    """Give the stripped state of a room, then ``others``; at most ``MAX_BYTES``.

    An event that does not fit any more is left out. The create event is always there, if need be with only
    its small, well-known keys.
    """
    rows = [row for key in _KEYS if (row := state.row(key)) is not None]
    found: list[dict[str, Any]] = []
    left = MAX_BYTES
    for row in (*rows[:1], *others, *rows[1:]):
        stripped = strip(row)
        size = len(orjson.dumps(stripped))
        if size > left and row.key == CREATE_KEY:
            content = row.content
            stripped["content"] = {
                k: content[k] for k in _SMALL_CREATE if k in content and _is_small(content[k])
            }
            size = len(orjson.dumps(stripped))
        if size <= left:
            left -= size
            found.append(stripped)
    return found


def _is_small(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and len(value) <= 255)
