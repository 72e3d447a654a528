"""Profiles: fields that users show to others, and who may look at them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.rooms.memberships import Memberships
from ranvier.spec.errors import MatrixError, bad_json, forbidden, invalid_param, not_found
from ranvier.spec.ids import is_user_id
from ranvier.storage.profiles import ProfileStore
from ranvier.users.edits import Edits
from ranvier.users.followed import FollowedByUser
from ranvier.users.requester import Requester
from ranvier.wire.log_rows import LogRow

PROFILE: Final = "profile"
DISPLAYNAME: Final = "displayname"
AVATAR_URL: Final = "avatar_url"
TIME_ZONE: Final = "m.tz"
IN_MEMBER_EVENTS: Final = (DISPLAYNAME, AVATAR_URL)

MAX_BYTES: Final = 64 * 1024
MAX_KEY_BYTES: Final = 255
MAX_DISPLAYNAME: Final = 256
MAX_AVATAR_URL: Final = 1000
_MAX_ROOMS_LOOKED_AT: Final = 1000

# "custom field following the Common Namespaced Identifier Grammar", with a namespace
_CUSTOM = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+")
_MXC = re.compile(r"mxc://[A-Za-z0-9.\-:\[\]]+/[A-Za-z0-9_-]+")
_TIME_ZONE = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+){0,3}")

Profile = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProfileRules:
    """Who may look at profiles and what users may change, by the configuration of the same names."""

    server_name: str
    require_auth: bool = False
    limit_to_users_who_share_rooms: bool = False
    enable_set_displayname: bool = True
    enable_set_avatar_url: bool = True


class Profiles:
    """Read and change profiles: in memory for active users, true to the log."""

    def __init__(
        self,
        *,
        store: ProfileStore,
        appender: Appender,
        tail: Tail,
        memberships: Memberships,
        rules: ProfileRules,
    ) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._memberships = memberships
        self._rules = rules
        self._edits = Edits()
        self._kept = FollowedByUser(tail=tail, concerns=_is_changed, load=self._load)

    async def get(self, user_id: str) -> Profile:
        """Give the fields of a user's profile, none for an unknown user: for member events."""
        return await self._kept.of(user_id) or {}

    # -- looking -----------------------------------------------------------------------------------

    async def show(self, asker: Requester | None, user_id: str) -> Profile:
        """Give a profile to who asks.

        Raises 401 ``M_MISSING_TOKEN`` or 403 ``M_FORBIDDEN`` where the configuration keeps it from them,
        404 ``M_NOT_FOUND`` for an unknown user.
        """
        await self._check_look(asker, user_id)
        profile = await self._kept.of(user_id)
        if profile is None:
            raise not_found("There is no profile of this user")
        return profile

    async def show_field(self, asker: Requester | None, user_id: str, key: str) -> Any:
        """Give one field; raises as ``show`` does, and 404 where the field is not set."""
        profile = await self.show(asker, user_id)
        if key not in profile:
            raise not_found("The profile has no such field")
        return profile[key]

    async def _check_look(self, asker: Requester | None, user_id: str) -> None:
        rules = self._rules
        if asker is None:
            if rules.require_auth or rules.limit_to_users_who_share_rooms:
                raise MatrixError("M_MISSING_TOKEN", 401, "Missing access token")
            return
        if not rules.limit_to_users_who_share_rooms or asker.user_id == user_id or asker.is_admin:
            return
        mine = set(await self._memberships.joined(asker.user_id))
        if mine.isdisjoint(await self._memberships.joined(user_id)) and not await self._is_public(user_id):
            raise forbidden("You share no room with this user")

    async def _is_public(self, user_id: str) -> bool:
        """Tell whether a user is in a room that anybody may join or read.

        "Homeservers MUST at a minimum allow profile look-up for … users who are joined to rooms … that
        have a public join rule … world_readable history visibility".
        """
        for pdu in await self._store.visibility_of_rooms(user_id, 2 * _MAX_ROOMS_LOOKED_AT):
            content = orjson.loads(pdu)["content"]
            if content.get("join_rule") == "public" or content.get("history_visibility") == "world_readable":
                return True
        return False

    # -- changing ----------------------------------------------------------------------------------

    async def put(self, asker: Requester, user_id: str, key: str, value: Any) -> None:
        """Set a field for who asks; an empty name or avatar is taken away.

        Raises 403 ``M_FORBIDDEN`` (others' profiles, fields that the server manages), 400
        ``M_KEY_TOO_LARGE``, ``M_INVALID_PARAM``, ``M_BAD_JSON``, ``M_PROFILE_TOO_LARGE``.
        """
        await self._check_change(asker, user_id, key)
        await self.set_field(user_id, key, value)

    async def remove(self, asker: Requester, user_id: str, key: str) -> None:
        """Take a field away for who asks; one that is not there is no error. Raises as ``put`` does."""
        await self._check_change(asker, user_id, key)
        await self._edit(user_id, key, lambda fields: _without(fields, key))

    async def set_field(self, user_id: str, key: str, value: Any) -> None:
        """Set a field, whoever asked (a registration, an administrator); checks only the field itself."""
        _check_key(key)
        _check_value(key, value)
        if value == "" and key in IN_MEMBER_EVENTS:
            await self._edit(user_id, key, lambda fields: _without(fields, key))
        else:
            await self._edit(user_id, key, lambda fields: {**fields, key: value})

    async def _check_change(self, asker: Requester, user_id: str, key: str) -> None:
        _check_key(key)
        if asker.user_id != user_id and not asker.is_admin:
            raise forbidden("You may only change your own profile")
        asker.require_unsuspended()
        # "Guest users may only modify their display name; other profile fields may not be changed."
        if asker.is_guest and key != DISPLAYNAME:
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may only change their display name")
        managed = (key == DISPLAYNAME and not self._rules.enable_set_displayname) or (
            key == AVATAR_URL and not self._rules.enable_set_avatar_url
        )
        # "Whether users are allowed to change their displayname after it has been initially set."
        if managed and not asker.is_admin and key in await self.get(user_id):
            raise forbidden(f"Changing {key} is disabled on this server")

    async def _edit(self, user_id: str, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        async def edit() -> None:
            stored = await self._store.get(user_id)
            if stored is None:
                raise not_found("There is no such user")
            before: dict[str, Any] = orjson.loads(stored.document) if stored.document else {}
            fields = change(dict(before))
            if fields == before:
                return
            body = orjson.dumps(fields)
            # "the total profile MUST be under 64 KiB"
            if len(body) >= MAX_BYTES and len(body) > len(stored.document or b""):
                raise MatrixError("M_PROFILE_TOO_LARGE", 400, f"A profile has less than {MAX_BYTES} bytes")
            row = LogRow(kind=PROFILE, user_id=user_id, key=key, key2=str(stored.pos), body=body)
            await self._tail.wait_for(await self._appender.append_rows([row]))

        await self._edits.make(user_id, edit)

    async def _load(self, user_id: str) -> Profile | None:
        if not is_user_id(user_id):
            return None
        stored = await self._store.get(user_id)
        if stored is None or stored.deactivated:
            return None
        profile: Profile = orjson.loads(stored.document) if stored.document else {}
        return profile


def _is_changed(row: LogRow) -> bool:
    # An account that is made or deactivated may have been looked for before.
    return row.kind in (PROFILE, "access_token")


def _without(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != key}


def check_display_name(name: Any) -> None:
    """Refuse what a profile can not have for a name. Raises 400 ``M_BAD_JSON`` and ``M_INVALID_PARAM``."""
    _check_text(DISPLAYNAME, name, MAX_DISPLAYNAME)


def _check_key(key: str) -> None:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise MatrixError("M_KEY_TOO_LARGE", 400, f"A profile key has at most {MAX_KEY_BYTES} bytes")
    if key not in IN_MEMBER_EVENTS and not _CUSTOM.fullmatch(key):
        raise invalid_param("A profile key is displayname, avatar_url, m.tz or like com.example.field")


def _check_value(key: str, value: Any) -> None:
    if key == DISPLAYNAME:
        check_display_name(value)
    elif key == AVATAR_URL:
        _check_text(key, value, MAX_AVATAR_URL)
        if value and not _MXC.fullmatch(value):
            raise invalid_param("avatar_url must be an mxc:// URI")
    elif key == TIME_ZONE:
        _check_text(key, value, 64)
        if not _TIME_ZONE.fullmatch(value):
            raise invalid_param("m.tz must be the name of a time zone, like Europe/London")


def _check_text(key: str, value: Any, limit: int) -> None:
    if not isinstance(value, str):
        raise bad_json(f"{key} must be a string")
    if len(value) > limit:
        raise invalid_param(f"{key} has at most {limit} characters")
