"""Summaries of rooms: what somebody who is not in a room may learn of it, and who may."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any, Final

from ranvier.rooms.joining import allowed_rooms, is_restricted
from ranvier.rooms.memberships import Memberships
from ranvier.spec.errors import invalid_param, not_found
from ranvier.spec.ids import check_room_id, is_compliant_user_id, is_room_id
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.room_directory import RoomDirectoryStore, RoomFacts

SPACE: Final = "m.space"
MAX_MUTUAL: Final = 100


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


class RoomSummaries:
    """Answer what a room is, for those who may know."""

    def __init__(self, *, store: RoomDirectoryStore, memberships: Memberships) -> None:
        self._store = store
        self._memberships = memberships

    async def of(self, room_id: str, user_id: str | None) -> dict[str, Any]:
        """Give the summary of a room, with the membership of ``user_id`` (None: somebody unknown).

        Raises 404 ``M_NOT_FOUND``, also where the user may not know of the room.
        """
        check_room_id(room_id)
        facts = (await self._store.facts([room_id])).get(room_id)
        memberships = dict(await self._memberships.of(user_id)) if user_id is not None else {}
        own = memberships.get(room_id)
        in_rooms = {m.room_id for m in memberships.values() if m.membership == "join"}
        if facts is None or not may_preview(facts, own.membership if own is not None else None, in_rooms):
            raise not_found("Room not found")
        summary = room_summary(facts)
        if user_id is not None:
            summary["membership"] = own.membership if own is not None else "leave"
        return summary

    async def mutual(self, user_id: str, other_id: str, start: str | None) -> dict[str, Any]:
        """Give one page of the rooms that two users are both joined to.

        Raises 400 ``M_INVALID_PARAM`` for a user id that is odd or the user's own, or an odd ``start``.
        Source: client-server API, GET /mutual_rooms.
        """
        if not is_compliant_user_id(other_id) or other_id == user_id:
            raise invalid_param("user_id must be the ID of another user")
        mine = set(await self._memberships.joined(user_id))
        shared = sorted(mine.intersection(await self._memberships.joined(other_id)))
        after = "" if start is None else _mutual_start(start)
        page = [room_id for room_id in shared if room_id > after]
        answer: dict[str, Any] = {"joined": page[:MAX_MUTUAL], "count": len(shared)}
        if len(page) > MAX_MUTUAL:
            answer["next_batch"] = base64.urlsafe_b64encode(page[MAX_MUTUAL - 1].encode()).decode("ascii")
        return answer


def _mutual_start(token: str) -> str:
    try:
        room_id = base64.b64decode(token, altchars=b"-_", validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        room_id = ""
    if not is_room_id(room_id):
        raise invalid_param("from is not a token of this server")
    return room_id
