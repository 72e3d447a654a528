"""Account data, and what the server itself reads of it: whom a user ignores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, bad_json, invalid_param, not_found
from ranvier.spec.ids import check_event_type, check_room_id, is_user_id
from ranvier.storage.account_data import AccountDataStore
from ranvier.users.followed import FollowedByUser
from ranvier.wire.log_rows import LogRow

ACCOUNT_DATA: Final = "account_data"
FULLY_READ: Final = "m.fully_read"
PUSH_RULES_TYPE: Final = "m.push_rules"
IGNORED_USERS: Final = "m.ignored_user_list"
INVITE_PERMISSION: Final = "m.invite_permission_config"

MAX_PIECES: Final = 20_000
"""Pieces of account data that one user may have, of all rooms together."""
MAX_BYTES: Final = 32 << 20
"""Bytes that the contents of all of them may have."""
MAX_IGNORED: Final = 10_000
"""Ignored users of one user that are heeded."""


class AccountData:
    """Read and write account data. ``room_id`` is None for what is global."""

    def __init__(self, *, store: AccountDataStore, appender: Appender, tail: Tail) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail

    async def get(self, user_id: str, type: str, room_id: str | None = None) -> bytes:
        """Give the content, JSON. Raises 404 ``M_NOT_FOUND``, 400 ``M_INVALID_PARAM`` for a broken id."""
        _check_place(type, room_id)
        row = await self._store.get(user_id, room_id or "", type)
        if row is None:
            raise not_found("Account data not found")
        return row.content

    async def content(self, user_id: str, type: str, room_id: str | None = None) -> dict[str, Any] | None:
        """Give the content, parsed; None where there is none."""
        return (await self.with_position(user_id, type, room_id))[0]

    async def with_position(
        self, user_id: str, type: str, room_id: str | None = None
    ) -> tuple[dict[str, Any] | None, int]:
        """Give the content and the position of its last change; None and 0 where there is none."""
        row = await self._store.get(user_id, room_id or "", type)
        return (None, 0) if row is None else (orjson.loads(row.content), row.pos)

    async def set(
        self, user_id: str, type: str, content: Mapping[str, Any], room_id: str | None = None
    ) -> None:
        """Write a piece and return when this process tells of it.

        Raises 405 ``M_BAD_JSON`` for what only the server writes, 400 ``M_INVALID_PARAM`` for a broken id,
        413 ``M_TOO_LARGE`` when the user would have too much.
        """
        _check_place(type, room_id)
        # "Servers MUST reject setting account data for event types that the server manages by using a
        # 405 error response … m.fully_read and m.push_rules … both global and room-specific"
        if type in (FULLY_READ, PUSH_RULES_TYPE):
            raise MatrixError("M_BAD_JSON", 405, f"Cannot set {type} through this API")
        await self.write(user_id, type, content, room_id)

    async def write(
        self,
        user_id: str,
        type: str,
        content: Mapping[str, Any],
        room_id: str | None = None,
        *,
        computed_on: int | None = None,
    ) -> None:
        """Write any type. ``computed_on``: position of the piece that this content is a change of.

        Raises ChangedMeanwhile when that is no longer the newest, 413 ``M_TOO_LARGE`` as ``set`` does.
        """
        try:
            body = orjson.dumps(content)
        except orjson.JSONEncodeError as error:
            raise bad_json(f"The content cannot be stored: {error}") from None
        await self._check_room_left(user_id, len(body))
        row = LogRow(
            kind=ACCOUNT_DATA,
            user_id=user_id,
            room_id=room_id,
            key=type,
            key2=None if computed_on is None else str(computed_on),
            body=body,
        )
        await self._tail.wait_for(await self._appender.append_rows([row]))

    async def invites_blocked(self, user_id: str) -> bool:
        """Tell whether a user takes no invitations at all (``m.invite_permission_config``)."""
        content = await self.content(user_id, INVITE_PERMISSION)
        return content is not None and content.get("default_action") == "block"

    async def _check_room_left(self, user_id: str, size: int) -> None:
        pieces, bytes_ = await self._store.totals(user_id)
        if pieces >= MAX_PIECES or bytes_ + size > MAX_BYTES:
            raise MatrixError(
                "M_TOO_LARGE", 413, f"A user may have {MAX_PIECES} pieces of account data, {MAX_BYTES} bytes"
            )


def _check_place(type: str, room_id: str | None) -> None:
    check_event_type(type)
    if not type:
        raise invalid_param("The type of account data must not be empty")
    if room_id is not None:
        check_room_id(room_id)


class IgnoredUsers:
    """Know whom users ignore: in memory for active users, true to the log."""

    def __init__(self, *, store: AccountDataStore, tail: Tail) -> None:
        self._store = store
        self._users = FollowedByUser(tail=tail, concerns=is_ignored_list, load=self._load)

    async def of(self, user_id: str) -> frozenset[str]:
        """Give the ids of the users that a user ignores."""
        return await self._users.of(user_id)

    def held(self, user_id: str) -> frozenset[str] | None:
        """Give the ids of the users that a user ignores if they are in memory."""
        return self._users.held(user_id)

    async def _load(self, user_id: str) -> frozenset[str]:
        row = await self._store.get(user_id, "", IGNORED_USERS)
        ignored = None if row is None else orjson.loads(row.content).get("ignored_users")
        if not isinstance(ignored, dict):
            return frozenset()
        # NOTSPEC: whoever ignores themselves goes on to see what they write.
        valid = [it for it in ignored if is_user_id(it) and it != user_id]
        return frozenset(valid[:MAX_IGNORED])


def is_ignored_list(row: LogRow) -> bool:
    """Tell whether a row of the log changes whom a user ignores."""
    return row.kind == ACCOUNT_DATA and row.key == IGNORED_USERS and row.room_id is None
