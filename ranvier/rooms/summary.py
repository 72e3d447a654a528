"""Summaries of rooms: what somebody who is not in a room may learn of it, and who may."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from ranvier.rooms.joining import allowed_rooms, is_restricted
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.room_directory import RoomFacts

SPACE: Final = "m.space"


def join_rule_of(facts: RoomFacts) -> str:
    """Give the join rule of a room, "invite" where it says none."""
    rule = facts.contents.get("m.room.join_rules", {}).get("join_rule")
    return rule if isinstance(rule, str) else "invite"


def is_world_readable(facts: RoomFacts) -> bool:
    """Tell whether everybody may read the room's history."""
    return _text(facts, "m.room.history_visibility", "history_visibility") == "world_readable"


def room_type_of(facts: RoomFacts) -> str | None:
    """Give the type of a room (``m.space``), if it has one."""
    return _text(facts, "m.room.create", "type")


def published_entry(facts: RoomFacts) -> dict[str, Any]:
    """Give a room as the published directory lists it (PublishedRoomsChunk)."""
    fields = {
        "room_id": facts.room_id,
        "num_joined_members": facts.joined_members,
        "world_readable": is_world_readable(facts),
        "guest_can_join": _text(facts, "m.room.guest_access", "guest_access") == "can_join",
        "join_rule": join_rule_of(facts),
        "name": _text(facts, "m.room.name", "name"),
        "topic": plain_topic(facts.contents.get("m.room.topic", {})),
        "avatar_url": _text(facts, "m.room.avatar", "url"),
        "canonical_alias": _text(facts, "m.room.canonical_alias", "alias"),
        "room_type": room_type_of(facts),
    }
    return {key: value for key, value in fields.items() if value is not None}


def room_summary(facts: RoomFacts) -> dict[str, Any]:
    """Give the summary of a room (RoomSummary)."""
    summary = {**published_entry(facts), "room_version": facts.version}
    algorithm = _text(facts, "m.room.encryption", "algorithm")
    if algorithm is not None:
        summary["encryption"] = algorithm
    if is_restricted(ROOM_VERSIONS[facts.version], join_rule_of(facts)):
        summary["allowed_room_ids"] = allowed_rooms(facts.contents.get("m.room.join_rules", {}))
    return summary


def may_preview(facts: RoomFacts, membership: str | None, in_rooms: Collection[str]) -> bool:
    """Tell whether a user may be told of a room.

    ``membership`` is what they are in it, ``in_rooms`` are the rooms that they are joined to.
    Source: client-server API, GET /rooms/{roomId}/hierarchy, which rooms to return.
    """
    if membership in ("join", "invite"):
        return True
    if membership == "ban":
        return False
    version, rule = ROOM_VERSIONS[facts.version], join_rule_of(facts)
    if rule == "public" or is_world_readable(facts):
        return True
    if (version.knocking and rule == "knock") or (
        version.knock_restricted_joins and rule == "knock_restricted"
    ):
        return True
    if not is_restricted(version, rule):
        return False
    return any(room_id in in_rooms for room_id in allowed_rooms(facts.contents["m.room.join_rules"]))


def plain_topic(content: Mapping[str, Any]) -> str | None:
    """Give the topic in plain text, from its text block or from ``topic``."""
    block = content.get("m.topic")
    texts = block.get("m.text") if isinstance(block, dict) else None
    for text in texts if isinstance(texts, list) else ():
        if isinstance(text, dict) and text.get("mimetype", "text/plain") == "text/plain":
            body = text.get("body")
            if isinstance(body, str):
                return body
    topic = content.get("topic")
    return topic if isinstance(topic, str) and topic else None


def _text(facts: RoomFacts, type: str, key: str) -> str | None:
    value = facts.contents.get(type, {}).get(key)
    return value if isinstance(value, str) and value else None
