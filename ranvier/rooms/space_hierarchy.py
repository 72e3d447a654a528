"""Spaces: walking down a tree of rooms, for somebody who may see only some of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ranvier.rooms.memberships import Membership, Memberships
from ranvier.rooms.summary import SPACE, may_preview, room_summary, room_type_of
from ranvier.spec.errors import forbidden, invalid_param
from ranvier.spec.ids import check_room_id, is_room_id
from ranvier.storage.room_directory import RoomDirectoryStore, RoomFacts

MAX_PAGE: Final = 50
MAX_DEPTH: Final = 10
MAX_ROOMS: Final = 1000
MAX_CHILDREN: Final = 500
_TOKEN: Final = re.compile(r"h([0-9]{1,4})_([0-9]{1,2})_([01])")


class _Walk(NamedTuple):
    """What stays the same on the way down."""

    suggested_only: bool
    max_depth: int
    memberships: Mapping[str, Membership]
    in_rooms: Collection[str]


class SpaceHierarchy:
    """List the rooms under a space, depth first."""

    def __init__(self, *, store: RoomDirectoryStore, memberships: Memberships) -> None:
        self._store = store
        self._memberships = memberships

    async def page(
        self,
        user_id: str,
        room_id: str,
        *,
        suggested_only: bool,
        max_depth: int | None,
        limit: int | None,
        start: str | None,
    ) -> dict[str, Any]:
        """Give one page: ``rooms``, and ``next_batch`` if there are more.

        At most ``MAX_ROOMS`` rooms of a tree are shown, each once. Raises 403 ``M_FORBIDDEN`` for a space
        that the user may not see, 400 ``M_INVALID_PARAM`` for a token of another request.
        Source: client-server API, GET /rooms/{roomId}/hierarchy.
        """
        check_room_id(room_id)
        depth = MAX_DEPTH if max_depth is None else min(max_depth, MAX_DEPTH)
        skip = 0 if start is None else _parse(start, depth, suggested_only)
        size = MAX_PAGE if limit is None else min(limit, MAX_PAGE)
        memberships = dict(await self._memberships.of(user_id))
        in_rooms = {m.room_id for m in memberships.values() if m.membership == "join"}
        walk = _Walk(suggested_only, depth, memberships, in_rooms)
        rooms = await self._walk(walk, room_id, skip + size + 1)
        page = rooms[skip : skip + size]
        answer: dict[str, Any] = {"rooms": page}
        if len(rooms) > skip + size:
            answer["next_batch"] = f"h{skip + size}_{depth}_{int(suggested_only)}"
        return answer

    async def _walk(self, walk: _Walk, root_id: str, wanted: int) -> list[dict[str, Any]]:
        """Give the first ``wanted`` rooms of the tree."""
        root = await self._visible(walk, [root_id])
        if root_id not in root:
            raise forbidden("You are not allowed to view this room, or it does not exist")
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        # The next room is at the end. A room that hangs in the tree twice, or in itself, is shown once.
        waiting = [(root[root_id], 0)]
        while waiting and len(found) < min(wanted, MAX_ROOMS):
            facts, depth = waiting.pop()
            if facts.room_id in seen:
                continue
            seen.add(facts.room_id)
            children = await self._children(walk, facts)
            found.append({**room_summary(facts), "children_state": [_stripped(child) for child in children]})
            if depth < walk.max_depth and children:
                ids = [child["state_key"] for child in children if child["state_key"] not in seen]
                visible = await self._visible(walk, ids)
                waiting.extend((visible[i], depth + 1) for i in reversed(ids) if i in visible)
        return found

    async def _visible(self, walk: _Walk, room_ids: Sequence[str]) -> dict[str, RoomFacts]:
        def may(facts: RoomFacts) -> bool:
            own = walk.memberships.get(facts.room_id)
            return may_preview(facts, own.membership if own is not None else None, walk.in_rooms)

        return {i: facts for i, facts in (await self._store.facts(room_ids)).items() if may(facts)}

    async def _children(self, walk: _Walk, facts: RoomFacts) -> list[dict[str, Any]]:
        if room_type_of(facts) != SPACE:
            return []
        children = [pdu for pdu in await self._store.children(facts.room_id, MAX_CHILDREN) if _is_child(pdu)]
        if walk.suggested_only:
            children = [child for child in children if child["content"].get("suggested") is True]
        return sorted(children, key=_order)


def _is_child(pdu: Mapping[str, Any]) -> bool:
    # Source: client-server API, "m.space.child relationship": without via the child is not part of the space.
    via = pdu["content"].get("via")
    return isinstance(via, list) and bool(via) and is_room_id(pdu["state_key"])


def _order(child: Mapping[str, Any]) -> tuple[bool, str, int, str]:
    """Sort as the specification says: by a valid ``order``, those without one last, then by time and id."""
    order = child["content"].get("order")
    valid = isinstance(order, str) and len(order) <= 50 and all("\x20" <= c <= "\x7e" for c in order)
    return (not valid, order if valid else "", child["origin_server_ts"], child["state_key"])


def _stripped(child: Mapping[str, Any]) -> dict[str, Any]:
    return {key: child[key] for key in ("type", "state_key", "content", "sender", "origin_server_ts")}


def _parse(token: str, depth: int, suggested_only: bool) -> int:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise invalid_param("from is not a token of this server")
    if (int(match[2]), match[3] == "1") != (depth, suggested_only):
        raise invalid_param("suggested_only and max_depth cannot change on paginated requests")
    return int(match[1])
