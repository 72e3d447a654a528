"""The published room directory of this server."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

import orjson

from ranvier.config.rooms import DirectoryRules
from ranvier.log.append import Appender
from ranvier.rooms.actor import Actor
from ranvier.rooms.aliases import CANONICAL_ALIAS, may_set
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.summary import published_entry, room_type_of
from ranvier.spec.errors import forbidden, invalid_param
from ranvier.storage.aliases import AliasStore
from ranvier.storage.room_directory import Entry, Listed, Place, RoomDirectoryStore, RoomFacts, Search

MAX_PAGE: Final = 100
_MAX_ROUNDS: Final = 10


class Directory:
    """Publish rooms and list them, those with the most members first.

    What is told of a room is kept beside its entry and made anew when the room's state has changed
    since, or some of it was redacted: looked for whenever somebody asks, so that a room which nobody asks
    for costs nothing.
    """

    def __init__(
        self,
        *,
        store: RoomDirectoryStore,
        aliases: AliasStore,
        rooms: Rooms,
        appender: Appender,
        publication_rules: DirectoryRules,
    ) -> None:
        self._store = store
        self._aliases = aliases
        self._rooms = rooms
        self._appender = appender
        self._rules = publication_rules

    async def is_published(self, room_id: str) -> bool:
        """Tell whether a room is published. Raises 404 ``M_NOT_FOUND`` for an unknown room."""
        await self._rooms.get(room_id)
        return await self._store.is_published(room_id)

    async def set_published(self, actor: Actor, room_id: str, published: bool) -> None:
        """Publish a room, or no longer.

        Only an administrator, or who may set the room's canonical alias, may do so, and the server's rules
        for publishing must agree. Raises 403 ``M_FORBIDDEN``, 404 ``M_NOT_FOUND``.
        """
        actor.require_unsuspended()
        room = await self._rooms.get(room_id)
        if not actor.is_admin and not may_set(room, actor.user_id, CANONICAL_ALIAS):
            raise forbidden("You may not change whether this room is published")
        self._appender.check_in_time()
        if published:
            self.check_publish(actor, room_id, await self._aliases.of_room(room_id))
            await self.do_publish(actor.user_id, room_id)
        else:
            await self._store.unpublish(room_id)

    def check_publish(self, actor: Actor, room_id: str, aliases: Sequence[str]) -> None:
        """Refuse what the server's rules for publishing rooms do not allow (403 ``M_FORBIDDEN``)."""
        if not self._rules.allow(actor.user_id, room_id, aliases):
            raise forbidden("You may not publish this room on this server")

    async def do_publish(self, user_id: str, room_id: str) -> None:
        """Publish a room."""
        await self._store.publish(room_id, user_id)

    async def replace(self, room_id: str, new_room_id: str, user_id: str) -> None:
        """Let a room take the place of another, if that one is published."""
        if await self._store.is_published(room_id):
            await self._store.publish(new_room_id, user_id)
            await self._store.unpublish(room_id)

    async def page(
        self, *, since: str | None, limit: int, term: str | None, room_types: Sequence[str | None] | None
    ) -> bytes:
        """Give one page of the directory, ready JSON. Raises 400 ``M_INVALID_PARAM``."""
        backwards, place = (False, None) if since is None else _parse(since)
        await self._refresh()
        search = _search(term, room_types)
        limit = min(max(limit, 1), MAX_PAGE)
        if backwards:
            assert place is not None
            listed = await self._store.before(search, place, limit + 1)
            more = len(listed) > limit
            listed = listed[-limit:]
            following, preceding = bool(listed), more
        else:
            listed = await self._store.after(search, place, limit + 1)
            following, preceding = len(listed) > limit, place is not None
            listed = listed[:limit]
        return _render(listed, following, preceding, await self._store.count(search))

    async def _refresh(self) -> None:
        """Make anew what has changed."""
        for _ in range(_MAX_ROUNDS):
            stale = await self._store.stale()
            if not stale:
                return
            facts = await self._store.facts(list(stale))
            await self._store.refresh([_entry(f, stale[f.room_id]) for f in facts.values()])


def _entry(facts: RoomFacts, made_of: int) -> Entry:
    shown = published_entry(facts)
    searched = "\n".join(shown.get(key, "") for key in ("name", "topic", "canonical_alias")).lower()
    return Entry(
        room_nid=facts.room_nid,
        was_made_of=made_of,
        snapshot_nid=facts.snapshot_nid,
        joined_members=facts.joined_members,
        room_type=_storable(room_type_of(facts)),
        searched=_storable(searched) or "",
        shown=orjson.dumps(shown),
    )


def _storable(text: str | None) -> str | None:
    # A PostgreSQL text holds no NUL; an event may.
    return None if text is None else text.replace("\0", "")


def _search(term: str | None, room_types: Sequence[str | None] | None) -> Search:
    pattern = None
    if term:
        escaped = term.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = f"%{escaped}%"
    if room_types is None:
        return Search(pattern)
    named = [room_type for room_type in room_types if room_type is not None]
    return Search(pattern, named, None in room_types)


def _render(listed: Sequence[Listed], following: bool, preceding: bool, count: int) -> bytes:
    answer: dict[str, Any] = {
        "chunk": [orjson.Fragment(room.shown) for room in listed],
        "total_room_count_estimate": count,
    }
    if following:
        answer["next_batch"] = _token("n", listed[-1].place)
    if preceding and listed:
        answer["prev_batch"] = _token("p", listed[0].place)
    return orjson.dumps(answer)


def _token(direction: str, place: Place) -> str:
    return direction + base64.urlsafe_b64encode(orjson.dumps(list(place))).decode("ascii").rstrip("=")


def _parse(token: str) -> tuple[bool, Place]:
    try:
        data = base64.b64decode(token[1:] + "=" * (-(len(token) - 1) % 4), altchars=b"-_", validate=True)
        joined_members, room_id = orjson.loads(data)
    except (binascii.Error, ValueError, TypeError):
        raise invalid_param("since is not a token of this server's directory") from None
    if token[:1] not in ("n", "p") or type(joined_members) is not int or not isinstance(room_id, str):
        raise invalid_param("since is not a token of this server's directory")
    if not 0 <= joined_members < 1 << 31 or "\0" in room_id:
        raise invalid_param("since is not a token of this server's directory")
    return token[0] == "p", Place(joined_members, room_id)
