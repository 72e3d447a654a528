"""Making rooms: all of a room's first events, in the order of the specification, in one commit."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Literal

import msgspec

from ranvier.config.rooms import RoomsConfig
from ranvier.rooms.actor import Actor
from ranvier.rooms.aliases import CANONICAL_ALIAS, Aliases, bad_alias, check_canonical_form
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.directory import Directory
from ranvier.rooms.draft import Draft
from ranvier.rooms.membership import Membership, add_invite
from ranvier.rooms.presets import PRESETS, Preset, default_power_levels
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import AuthError, MatrixError, bad_json, invalid_param
from ranvier.spec.ids import check_user_id, is_user_id, new_room_id
from ranvier.spec.room_versions import RoomVersion, room_version

MAX_INVITES: Final = 100
MAX_INITIAL_STATE: Final = 200
_OVERWRITTEN: Final = ("creator", "room_version")


class InitialState(msgspec.Struct):
    """One event of ``initial_state``."""

    type: str
    content: dict[str, Any]
    state_key: str = ""


class CreateRoom(msgspec.Struct):
    """The body of POST /createRoom."""

    visibility: Literal["public", "private"] = "private"
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[str] = []
    invite_3pid: list[dict[str, Any]] = []
    room_version: str | None = None
    creation_content: dict[str, Any] = {}
    initial_state: list[InitialState] = []
    preset: Literal["private_chat", "public_chat", "trusted_private_chat"] | None = None
    is_direct: bool = False
    power_level_content_override: dict[str, Any] = {}


class _Plan(msgspec.Struct):
    """All that is known before the first event is built."""

    creator: str
    version: RoomVersion
    preset: Preset
    member: dict[str, Any]
    invites: dict[str, dict[str, Any]]
    alias: str | None = None


class RoomCreator:
    """Make rooms."""

    def __init__(
        self,
        *,
        server_name: str,
        writer: RoomWriter,
        membership: Membership,
        aliases: Aliases,
        directory: Directory,
        config: RoomsConfig,
    ) -> None:
        self._server_name = server_name
        self._writer = writer
        self._membership = membership
        self._aliases = aliases
        self._directory = directory
        self._config = config

    async def create(self, actor: Actor, request: CreateRoom) -> str:
        """Make a room and give its id.

        Raises 400 ``M_UNSUPPORTED_ROOM_VERSION``, ``M_ROOM_IN_USE``, ``M_INVALID_ROOM_STATE``,
        ``M_INVALID_PARAM``, ``M_BAD_JSON``, 403 ``M_FORBIDDEN``, ``M_INVITE_BLOCKED``,
        ``M_SERVER_NOT_TRUSTED``, 429 ``M_LIMIT_EXCEEDED``.
        """
        actor.require_unsuspended()
        version = room_version(request.room_version or self._config.default_room_version)
        _check_sizes(request)
        if request.visibility == "public":
            self._directory.check_publish(actor, "", [])
        plan = await self._plan(actor, request, version)
        async with AsyncExitStack() as stack:
            if request.room_alias_name is not None:
                plan.alias = await stack.enter_async_context(
                    self._aliases.claimed(actor, request.room_alias_name)
                )
            _check_initial_state(request, plan)
            room_id = await self._write(request, plan)
            if plan.alias is not None:
                await self._aliases.settle(actor, plan.alias, room_id)
        if request.visibility == "public":
            await self._directory.do_publish(actor.user_id, room_id)
        return room_id

    def new_room_id(self, version: RoomVersion) -> str:
        """Give an id for a new room; empty where the room version makes it of the create event."""
        if version.room_id_is_create_hash:
            return ""
        return new_room_id(self._server_name, secrets.token_hex(12))

    async def _plan(self, actor: Actor, request: CreateRoom, version: RoomVersion) -> _Plan:
        invites: dict[str, dict[str, Any]] = {}
        for user_id in dict.fromkeys(request.invite):
            if check_user_id(user_id) == actor.user_id:
                raise invalid_param("You can not invite yourself")
            await self._membership.check_invite(actor, user_id)
            invites[user_id] = {**await self._membership.profile(user_id), "membership": "invite"}
            if request.is_direct:
                invites[user_id]["is_direct"] = True
        # "If unspecified, the server should use the visibility to determine which preset to use."
        name = request.preset or ("public_chat" if request.visibility == "public" else "private_chat")
        if name in self._config.encrypted_presets and not _states(request, "m.room.encryption"):
            content = {"algorithm": "m.megolm.v1.aes-sha2"}
            request.initial_state.append(InitialState(type="m.room.encryption", content=content))
        return _Plan(
            creator=actor.user_id,
            version=version,
            preset=PRESETS[name],
            member={**await self._membership.profile(actor.user_id), "membership": "join"},
            invites=invites,
        )

    async def _write(self, request: CreateRoom, plan: _Plan) -> str:
        def build(draft: Draft) -> str:
            _build(draft, request, plan)
            return draft.room_id

        try:
            return await self._writer.create(plan.version, self.new_room_id(plan.version), build)
        except AuthError as error:
            raise MatrixError("M_INVALID_ROOM_STATE", 400, error.message) from error


def _build(draft: Draft, request: CreateRoom, plan: _Plan) -> None:
    """Add the first events. Source: client-server API, POST /createRoom, the numbered list."""

    def add(type: str, content: dict[str, Any], state_key: str = "") -> None:
        draft.add(sender=plan.creator, type=type, state_key=state_key, content=content)

    # 1. The m.room.create event itself.  2. An m.room.member event for the creator to join the room.
    add("m.room.create", create_content(request.creation_content, plan.version, plan.creator, _equals(plan)))
    add(MEMBER, plan.member, plan.creator)
    # 3. A default m.room.power_levels event.
    levels = default_power_levels(plan.version, plan.creator, _equals(plan), plan.preset)
    add("m.room.power_levels", {**levels, **request.power_level_content_override})
    # 4. An m.room.canonical_alias event if room_alias_name is given.
    if plan.alias is not None:
        add(CANONICAL_ALIAS, {"alias": plan.alias})
    # 5. Events set by the preset (what initial_state says anyway need not be said twice).
    for type_, content in plan.preset.state:
        if not _states(request, type_):
            add(type_, content)
    # 6. Events listed in initial_state, in the order that they are listed; name and topic overwrite theirs.
    for event in request.initial_state:
        if not (event.state_key == "" and _overwrites(request, event.type)):
            add(event.type, event.content, event.state_key)
    # 7. Events implied by name and topic.
    if request.name is not None:
        add("m.room.name", {"name": request.name})
    if request.topic is not None:
        add("m.room.topic", topic_content(request.topic))
    # 8. Invite events implied by invite.
    for user_id, content in plan.invites.items():
        add_invite(draft, plan.creator, user_id, content)


def create_content(
    given: Mapping[str, Any], version: RoomVersion, creator: str, more_creators: list[str]
) -> dict[str, Any]:
    """Give the content of a create event.

    Raises 400 ``M_BAD_JSON`` where ``additional_creators`` is not a list of user ids and the room version
    makes use of it.
    """
    content = {key: value for key, value in given.items() if key not in _OVERWRITTEN}
    if version.creator_in_content:
        content["creator"] = creator
    content["room_version"] = version.identifier
    if version.privileged_creators:
        additional = content.pop("additional_creators", [])
        if not isinstance(additional, list) or not all(map(is_user_id, additional)):
            raise bad_json("additional_creators must be a list of user IDs")
        # "the server SHOULD combine additional_creators specified here and the invite array"
        creators = [user_id for user_id in dict.fromkeys((*additional, *more_creators)) if user_id != creator]
        if creators:
            content["additional_creators"] = creators
    return content


def topic_content(topic: str) -> dict[str, Any]:
    """Give the content of a topic in plain text. Source: client-server API, ``m.room.topic``."""
    return {"topic": topic, "m.topic": {"m.text": [{"body": topic, "mimetype": "text/plain"}]}}


def _equals(plan: _Plan) -> list[str]:
    return list(plan.invites) if plan.preset.equal_invitees else []


def _states(request: CreateRoom, type: str) -> bool:
    return any(event.type == type and event.state_key == "" for event in request.initial_state)


def _overwrites(request: CreateRoom, type: str) -> bool:
    return (type == "m.room.name" and request.name is not None) or (
        type == "m.room.topic" and request.topic is not None
    )


def _check_sizes(request: CreateRoom) -> None:
    if request.invite_3pid:
        raise MatrixError(
            "M_SERVER_NOT_TRUSTED", 403, "This server uses no identity server: invite by user ID"
        )
    if len(request.invite) > MAX_INVITES:
        raise invalid_param(f"At most {MAX_INVITES} users can be invited at once")
    if len(request.initial_state) > MAX_INITIAL_STATE:
        raise invalid_param(f"initial_state has more than {MAX_INITIAL_STATE} events")


def _check_initial_state(request: CreateRoom, plan: _Plan) -> None:
    for event in request.initial_state:
        if event.type in ("m.room.create", MEMBER):
            # Inviting has its own list, which knows who takes no invitations.
            raise MatrixError("M_INVALID_ROOM_STATE", 400, f"initial_state can not hold {event.type}")
        if event.type == CANONICAL_ALIAS:
            check_canonical_form(event.content)
            others = event.content.get("alt_aliases") or []
            for alias in (*others, event.content.get("alias")):
                if alias not in (None, "", plan.alias):
                    raise bad_alias(alias)
