"""Room aliases: names for rooms that this server keeps, and the canonical alias that a room shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import orjson

from ranvier.config.rooms import DirectoryRules
from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.rooms.actor import Actor
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft
from ranvier.rooms.room import Room
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import AuthError, MatrixError, forbidden, invalid_param, not_found
from ranvier.spec.ids import check_room_alias, check_room_id, domain_of, is_room_alias
from ranvier.storage.aliases import MAX_PER_ROOM, AliasStore, StoredAlias

CANONICAL_ALIAS: Final = "m.room.canonical_alias"
MAX_ADVERTISED: Final = 100


class Resolved(NamedTuple):
    """What an alias names, and servers that are in that room."""

    room_id: str
    servers: list[str]


class Aliases:
    """Make, find and remove aliases. Those of other servers are not known here."""

    def __init__(
        self,
        *,
        server_name: str,
        store: AliasStore,
        rooms: Rooms,
        writer: RoomWriter,
        appender: Appender,
        clock: Clock,
        creation_rules: DirectoryRules,
        require_membership: bool = True,
    ) -> None:
        self._server_name = server_name
        self._store = store
        self._rooms = rooms
        self._writer = writer
        self._appender = appender
        self._clock = clock
        self._creation_rules = creation_rules
        self._require_membership = require_membership

    async def resolve(self, alias: str) -> Resolved:
        """Find the room of an alias. Raises 400 ``M_INVALID_PARAM`` and 404 ``M_NOT_FOUND``."""
        found = await self._find(alias)
        return Resolved(found.room_id, [self._server_name])

    async def room_id_of(self, room_id_or_alias: str) -> str:
        """Give the room that an id or an alias names. Raises 400 ``M_INVALID_PARAM``, 404 ``M_NOT_FOUND``."""
        if room_id_or_alias.startswith("#"):
            return (await self.resolve(room_id_or_alias)).room_id
        return check_room_id(room_id_or_alias)

    async def create(self, actor: Actor, alias: str, room_id: str) -> None:
        """Let an alias name a room.

        Raises 400 ``M_INVALID_PARAM`` for what is no alias of this server, 403 ``M_FORBIDDEN`` for one that
        the user may not make, 404 for an unknown room, 409 ``M_UNKNOWN`` for one that is taken.
        """
        actor.require_unsuspended()
        self._check_own(alias)
        check_room_id(room_id)
        room = await self._rooms.get(room_id)
        if self._require_membership and not actor.is_admin and room.membership_of(actor.user_id) != "join":
            raise forbidden("Only members of the room may give it an alias")
        self._check_rules(actor, alias, room_id)
        if await self._store.count(room_id) >= MAX_PER_ROOM:
            raise forbidden(f"The room has {MAX_PER_ROOM} aliases already")
        await self._settle_left(alias)
        self._appender.check_in_time()
        if not await self._store.add(alias, room_id, actor.user_id, self._clock.now_ms()):
            raise MatrixError("M_UNKNOWN", 409, f"Room alias {alias} already exists")

    @asynccontextmanager
    async def claimed(self, actor: Actor, alias_name: str) -> AsyncIterator[str]:
        """Hold the alias of a room that is about to be made; call ``settle`` once there is one.

        ``alias_name`` is the local part. Left with an error, the alias is free again. Raises 400
        ``M_INVALID_PARAM`` and ``M_ROOM_IN_USE``, 403 ``M_FORBIDDEN``.
        """
        alias = f"#{alias_name}:{self._server_name}"
        if ":" in alias_name:
            raise invalid_param("room_alias_name is the part of the alias before the colon")
        self._check_own(alias)
        self._check_rules(actor, alias, "")
        await self._settle_left(alias)
        if not await self._store.claim(alias, actor.user_id, self._clock.now_ms()):
            raise MatrixError("M_ROOM_IN_USE", 400, f"Room alias {alias} is taken")
        try:
            yield alias
        except BaseException:
            await self._store.unclaim(alias, actor.user_id)
            raise

    async def settle(self, actor: Actor, alias: str, room_id: str) -> None:
        """Let an alias that was claimed name the new room."""
        await self._store.settle(alias, room_id, actor.user_id)

    async def delete(self, actor: Actor, alias: str) -> None:
        """Remove an alias, and take it out of the room's canonical alias where the user may change that.

        Raises 400 ``M_INVALID_PARAM``, 404 ``M_NOT_FOUND``, and 403 ``M_FORBIDDEN`` for all but who made it,
        administrators, and those who may set the room's canonical alias.
        """
        found = await self._find(alias)
        room = await self._rooms.find(found.room_id)
        may = actor.is_admin or found.creator == actor.user_id
        if not may and not (room is not None and may_set(room, actor.user_id, CANONICAL_ALIAS)):
            raise forbidden("You may not remove this alias")
        self._appender.check_in_time()
        await self._store.delete(alias)
        if room is not None and alias in _advertised(room.content(CANONICAL_ALIAS)):
            await self._take_out(actor.user_id, found.room_id, alias)

    async def of_room(self, actor: Actor, room_id: str) -> list[str]:
        """Give this server's aliases of a room. Raises 403 ``M_FORBIDDEN``, also for an unknown room."""
        room = await self._rooms.find(room_id)
        if room is None or not (
            room.membership_of(actor.user_id) == "join"
            or room.history_visibility == "world_readable"
            or actor.is_admin
        ):
            raise forbidden("You are not a member of the room")
        return await self._store.of_room(room_id)

    async def check_canonical(self, room: Room, content: Mapping[str, Any]) -> None:
        """Check the aliases that a new ``m.room.canonical_alias`` adds to those already in the room's.

        Raises 400 ``M_INVALID_PARAM`` for what is no alias, ``M_BAD_ALIAS`` for one of another room.
        Source: client-server API, PUT /rooms/{roomId}/state/{eventType}/{stateKey}.
        """
        check_canonical_form(content)
        new = [a for a in _advertised(content) if a not in _advertised(room.content(CANONICAL_ALIAS))]
        if not new:
            return
        rooms = await self._store.rooms_of(new)
        for alias in new:
            if rooms.get(alias) != room.room_id:
                raise bad_alias(alias)

    async def move(self, room_id: str, new_room_id: str) -> None:
        """Let all aliases of a room name the one that takes its place."""
        await self._store.move(room_id, new_room_id)

    async def _find(self, alias: str) -> StoredAlias:
        """Find an alias. Raises 400 ``M_INVALID_PARAM`` and 404 ``M_NOT_FOUND``."""
        check_alias(alias)
        if domain_of(alias) == self._server_name:
            found = await self._store.find(alias)
            if found is None and await self._settle_left(alias):
                found = await self._store.find(alias)
            if found is not None:
                return found
        raise not_found(f"Room alias {alias} not found")

    async def _take_out(self, user_id: str, room_id: str, alias: str) -> None:
        """Remove an alias from the room's canonical alias.

        "delete the alias and return a successful response even if the user does not have permission to update
        the m.room.canonical_alias event"
        """

        def change(draft: Draft) -> bool:
            row = draft.state.row((CANONICAL_ALIAS, ""))
            if row is None or draft.membership_of(user_id) != "join":
                return False
            content = dict(row.content)
            if content.get("alias") == alias:
                del content["alias"]
            if isinstance(others := content.get("alt_aliases"), list):
                content["alt_aliases"] = [other for other in others if other != alias]
            try:
                draft.add(sender=user_id, type=CANONICAL_ALIAS, state_key="", content=content)
            except AuthError:
                return False
            return True

        await self._writer.write(room_id, change)

    async def _settle_left(self, alias: str) -> bool:
        """Let an alias name the room that was made for it, if a crash came between; False if none was."""
        for room_id, creator, pdu in await self._store.made_for_claim(alias):
            if orjson.loads(pdu)["content"].get("alias") == alias:
                await self._store.settle(alias, room_id, creator)
                return True
        return False

    def _check_own(self, alias: str) -> None:
        check_alias(alias)
        if domain_of(alias) != self._server_name:
            raise invalid_param(f"Aliases of this server end with :{self._server_name}")

    def _check_rules(self, actor: Actor, alias: str, room_id: str) -> None:
        if not self._creation_rules.allow(actor.user_id, room_id, [alias]):
            raise forbidden(f"You may not make the alias {alias} on this server")


def check_alias(alias: str) -> None:
    """Raise 400 ``M_INVALID_PARAM`` for what is no alias."""
    check_room_alias(alias)
    if any(character.isspace() for character in alias):
        raise invalid_param("An alias has no spaces in it")


def bad_alias(alias: str) -> MatrixError:
    """Say that an alias does not name this room (400 ``M_BAD_ALIAS``)."""
    return MatrixError("M_BAD_ALIAS", 400, f"The alias {alias} does not point to this room")


def check_canonical_form(content: Mapping[str, Any]) -> None:
    """Raise 400 ``M_INVALID_PARAM`` for a canonical alias that is no alias, or too many of them."""
    alias, others = content.get("alias"), content.get("alt_aliases")
    if alias not in (None, "") and not is_room_alias(alias):
        raise invalid_param("alias is not a room alias")
    if others is None:
        return
    if not isinstance(others, list) or len(others) > MAX_ADVERTISED or not all(map(is_room_alias, others)):
        raise invalid_param(f"alt_aliases is not a list of room aliases, at most {MAX_ADVERTISED}")


def may_set(room: Room, user_id: str, type: str) -> bool:
    """Tell whether a user is in a room and may set a kind of state there."""
    levels = room.power_levels
    level = levels.event_level(type, True)
    return room.membership_of(user_id) == "join" and levels.user_level(user_id) >= level


def _advertised(content: Mapping[str, Any]) -> list[str]:
    alias, others = content.get("alias"), content.get("alt_aliases")
    listed = [*(others if isinstance(others, list) else []), alias]
    return [a for a in listed if isinstance(a, str) and a != ""]
