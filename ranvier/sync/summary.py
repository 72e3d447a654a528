"""The summary of a room: how many are in it, and whom to name it after."""

from __future__ import annotations

import heapq
from typing import Any

import orjson

from ranvier.rooms.room import FIRST_MEMBERS, Room

_HEROES = FIRST_MEMBERS - 1


def room_summary(room: Room, user_id: str) -> bytes:
    """Give the ``summary`` of a joined room as JSON.

    Source: client-server API, "Syncing", RoomSummary: ``m.heroes`` are there "if the room has no m.room.name
    or m.room.canonical_alias", the first five by stream order, first of those joined or invited, and where
    there is nobody else of those who left or were banned.
    """
    summary: dict[str, Any] = {
        "m.joined_member_count": len(room.joined),
        "m.invited_member_count": len(room.invited),
    }
    if not room.content("m.room.name").get("name") and not room.content("m.room.canonical_alias").get(
        "alias"
    ):
        summary["m.heroes"] = _heroes(room, user_id)
    return orjson.dumps(summary)


def _heroes(room: Room, user_id: str) -> list[str]:
    # One more than are named, for the one who asks.
    heroes = [row for row in room.first_members if row.state_key != user_id][:_HEROES]
    if not heroes:
        gone = (
            row for row in room.members if row.membership in ("leave", "ban") and row.state_key != user_id
        )
        heroes = heapq.nsmallest(_HEROES, gone, key=lambda row: row.pos)
    return [row.state_key for row in heroes if row.state_key is not None]
