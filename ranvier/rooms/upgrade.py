"""Upgrading a room: a new one of another version takes its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ranvier.rooms.actor import Actor
from ranvier.rooms.aliases import CANONICAL_ALIAS, Aliases, may_set
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.create import RoomCreator, create_content
from ranvier.rooms.directory import Directory
from ranvier.rooms.draft import Draft
from ranvier.rooms.joining import is_restricted
from ranvier.rooms.membership import Membership
from ranvier.rooms.room import MEMBER, Room
from ranvier.rooms.rooms import Rooms
from ranvier.rooms.summary import SPACE
from ranvier.spec import canonical_json
from ranvier.spec.errors import AuthError, MatrixError, bad_json, forbidden
from ranvier.spec.event import StateKey
from ranvier.spec.ids import check_room_id, is_user_id
from ranvier.spec.power_levels import LEVEL_PROPERTIES, parse_level
from ranvier.spec.room_versions import RoomVersion, room_version

TOMBSTONE: Final = "m.room.tombstone"
POWER_LEVELS: Final = "m.room.power_levels"
# Source: client-server API, "Room Upgrades", step 3.
_COPIED: Final = (
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
)
_AT_ONCE: Final = 200
MAX_CREATORS: Final = 100


class RoomUpgrades:
    """Replace rooms."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        writer: RoomWriter,
        membership: Membership,
        aliases: Aliases,
        directory: Directory,
        room_creator: RoomCreator,
    ) -> None:
        self._rooms = rooms
        self._writer = writer
        self._membership = membership
        self._aliases = aliases
        self._directory = directory
        self._room_creator = room_creator

    async def upgrade(
        self, actor: Actor, room_id: str, new_version: str, additional_creators: Sequence[str] = ()
    ) -> str:
        """Make a room of ``new_version`` that takes the place of ``room_id``, and give its id.

        The new room is complete before anything in the old one tells of it, so that a failure on the way
        leaves the old room as it was. Raises 400 ``M_UNSUPPORTED_ROOM_VERSION``, 403 ``M_FORBIDDEN`` for a
        user who may not send the tombstone, 404 ``M_NOT_FOUND``.
        """
        actor.require_unsuspended()
        version = room_version(new_version)
        if len(additional_creators) > MAX_CREATORS or not all(map(is_user_id, additional_creators)):
            raise bad_json(f"additional_creators must be at most {MAX_CREATORS} user IDs")
        room = await self._rooms.get(check_room_id(room_id))
        if not may_set(room, actor.user_id, TOMBSTONE):
            raise forbidden("You cannot upgrade this room")
        new_room_id = await self._replacement(actor, room, version, additional_creators)
        await self._aliases.move(room_id, new_room_id)
        await self._directory.replace(room_id, new_room_id, actor.user_id)
        await self._writer.write(room_id, lambda draft: _close(draft, actor.user_id, new_room_id))
        return new_room_id

    async def _replacement(
        self, actor: Actor, room: Room, version: RoomVersion, additional_creators: Sequence[str]
    ) -> str:
        user_id = actor.user_id
        create = _create(room, version, user_id, additional_creators)
        levels = transferred_power_levels(room, version, [user_id, *create.get("additional_creators", ())])
        member = {**await self._membership.profile(user_id), "membership": "join"}
        state = _transferred_state(room, version)

        def build(draft: Draft) -> str:
            def add(key: StateKey, content: dict[str, Any]) -> None:
                draft.add(sender=user_id, type=key[0], state_key=key[1], content=content)

            add(("m.room.create", ""), create)
            add((MEMBER, user_id), member)
            # Who may upgrade need not be who may set all else: while the room is made, its maker may.
            add((POWER_LEVELS, ""), _with_maker(levels, version, user_id))
            for key, content in state[:_AT_ONCE]:
                add(key, content)
            return draft.room_id

        room_id = await self._writer.create(version, self._room_creator.new_room_id(version), build)
        for start in range(_AT_ONCE, len(state), _AT_ONCE):
            await self._write_all(room_id, user_id, state[start : start + _AT_ONCE])
        await self._write_all(room_id, user_id, [((POWER_LEVELS, ""), levels)])
        return room_id

    async def _write_all(
        self, room_id: str, user_id: str, state: Sequence[tuple[StateKey, dict[str, Any]]]
    ) -> None:
        def change(draft: Draft) -> None:
            for (type_, state_key), content in state:
                draft.add(sender=user_id, type=type_, state_key=state_key, content=content)

        await self._writer.write(room_id, change)


def transferred_power_levels(room: Room, version: RoomVersion, creators: Sequence[str]) -> dict[str, Any]:
    """Give the power levels of a room as they are in the one that takes its place.

    ``creators`` are those of the new room: where they have infinite power they are not listed. Creators of
    the old room who had infinite power keep the highest level that others can have.
    """
    old = room.power_levels
    row = room.state.get((POWER_LEVELS, ""))
    content: dict[str, Any] = dict(row.content) if row is not None else {}
    users = _levels(old.users, room.version)
    highest = max([100, *users.values()])
    users.update(dict.fromkeys(old.privileged, highest))
    if row is None and not old.privileged:
        users[room.create.sender] = 100
    events = _levels(old.events, room.version)
    for name in LEVEL_PROPERTIES:
        if name in content:
            content[name] = getattr(old, name)
    if isinstance(content.get("notifications"), dict):
        content["notifications"] = _levels(content["notifications"], room.version)
    if version.privileged_creators:
        users = {user_id: level for user_id, level in users.items() if user_id not in creators}
        # "the power level for sending m.room.tombstone events MUST explicitly be higher than state_default"
        lowest = max(old.state_default + 1, 100)
        events[TOMBSTONE] = max(events.get(TOMBSTONE, 150), lowest)
    return {**content, "users": users, "events": events}


def _levels(levels: Mapping[str, Any], version: RoomVersion) -> dict[str, int]:
    """Give levels as integers, which every room version takes; what is none is left out."""
    parsed = {name: parse_level(value, version) for name, value in levels.items()}
    return {name: level for name, level in parsed.items() if level is not None}


def _with_maker(levels: dict[str, Any], version: RoomVersion, maker: str) -> dict[str, Any]:
    if version.privileged_creators:
        return levels
    stated = [level for name in LEVEL_PROPERTIES if isinstance(level := levels.get(name), int)]
    needed = max([100, *levels["users"].values(), *levels["events"].values(), *stated])
    return {**levels, "users": {**levels["users"], maker: needed}}


def _create(
    room: Room, version: RoomVersion, user_id: str, additional_creators: Sequence[str]
) -> dict[str, Any]:
    # "The event ID of the last known event in the old room, if known."
    last = max(room.extremities, key=lambda row: row.pos)
    given: dict[str, Any] = {"predecessor": {"room_id": room.room_id, "event_id": last.event_id}}
    old = room.create.content
    for key in ("type", "m.federate"):
        if key in old:
            given[key] = old[key]
    # "If the room being upgraded has additional creators, they are not automatically copied"
    return create_content(given, version, user_id, list(additional_creators))


def _transferred_state(room: Room, version: RoomVersion) -> list[tuple[StateKey, dict[str, Any]]]:
    """Give the state that goes over, with bans and, for a space, its children."""
    state = []
    for type_ in (*_COPIED, CANONICAL_ALIAS):
        row = room.state.get((type_, ""))
        if row is not None:
            content = _join_rules(row.content, version) if type_ == "m.room.join_rules" else row.content
            state.append((row.key, content))
    is_space = room.create.content.get("type") == SPACE
    for row in room.state.values():
        if row.type == MEMBER and row.membership == "ban":
            reason = row.content.get("reason")
            state.append((row.key, {"membership": "ban", **({"reason": reason} if reason else {})}))
        elif is_space and row.type == "m.space.child" and row.content.get("via"):
            state.append((row.key, row.content))
    return [(key, content) for key, content in state if _fits(content, version)]


def _fits(content: dict[str, Any], version: RoomVersion) -> bool:
    """Tell whether a version takes a content: old versions had numbers that newer ones refuse."""
    try:
        canonical_json.check(content, strict=version.strict_canonical_json)
    except MatrixError:
        return False
    return True


def _join_rules(content: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Give join rules that the new version knows; where it does not know them, an invitation is needed."""
    rule = content.get("join_rule")
    known = (
        rule in ("public", "invite") or (rule == "knock" and version.knocking) or is_restricted(version, rule)
    )
    return content if known else {"join_rule": "invite"}


def _close(draft: Draft, user_id: str, new_room_id: str) -> None:
    """Say in the old room where to go, and, where the user may, let nobody talk or invite there any more."""

    def add(type: str, content: dict[str, Any]) -> None:
        draft.add(sender=user_id, type=type, state_key="", content=content)

    add(TOMBSTONE, {"body": "This room has been replaced", "replacement_room": new_room_id})
    row = draft.state.row((POWER_LEVELS, ""))
    power = draft.power_levels
    # "setting events_default and invite to the greater of 50 and users_default + 1"
    quiet = max(50, power.users_default + 1)
    quieter = {"events_default": max(quiet, power.events_default), "invite": max(quiet, power.invite)}
    changes: list[tuple[str, dict[str, Any]]] = []
    if draft.state.row((CANONICAL_ALIAS, "")) is not None:
        changes.append((CANONICAL_ALIAS, {}))
    if row is not None:
        changes.append((POWER_LEVELS, {**row.content, **quieter}))
    for type_, content in changes:
        try:
            add(type_, content)
        except AuthError:
            continue  # "If possible": who may set this in the room still can
