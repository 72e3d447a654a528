"""Tags on rooms: pieces of the room's account data ``m.tag``, changed one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from ranvier.spec.errors import MatrixError, bad_json, invalid_param
from ranvier.spec.ids import check_room_id
from ranvier.storage.account_data import AccountDataStore
from ranvier.users.account_data import AccountData
from ranvier.users.edits import Edits

TAG: Final = "m.tag"
MAX_TAGS: Final = 200
"""Tags on one room."""
MAX_TAG_BYTES: Final = 255
MAX_TAG_CONTENT: Final = 4096
"""Bytes of what is said of one tag."""

_Tags = dict[str, Any]


class Tags:
    """Read and change the tags that a user put on rooms."""

    def __init__(self, *, store: AccountDataStore, account_data: AccountData) -> None:
        self._store = store
        self._account_data = account_data
        self._edits = Edits()

    async def of_room(self, user_id: str, room_id: str) -> _Tags:
        """Give the tags on a room by name, none where there are none."""
        return (await self._read(user_id, check_room_id(room_id)))[0]

    async def put(self, user_id: str, room_id: str, tag: str, content: Mapping[str, Any]) -> None:
        """Put a tag on a room, or change it.

        Raises 400 ``M_INVALID_PARAM`` (name), ``M_BAD_JSON`` (order), 413 ``M_TOO_LARGE``.
        """
        _check_tag(tag)
        _check_content(content)

        def add(tags: _Tags) -> _Tags:
            if tag not in tags and len(tags) >= MAX_TAGS:
                raise MatrixError("M_TOO_LARGE", 413, f"A room may have at most {MAX_TAGS} tags")
            return {**tags, tag: dict(content)}

        await self._edit(user_id, room_id, add)

    async def remove(self, user_id: str, room_id: str, tag: str) -> None:
        """Take a tag from a room; one that is not there is no error."""
        _check_tag(tag)
        await self._edit(
            user_id, room_id, lambda tags: {name: it for name, it in tags.items() if name != tag}
        )

    async def copy(self, user_id: str, from_room: str, to_room: str) -> None:
        """Put the tags of one room on another that has none. Raises 413 ``M_TOO_LARGE``."""
        tags = await self.of_room(user_id, from_room)
        if tags:
            await self._edit(user_id, to_room, lambda present: present or tags)

    async def _edit(self, user_id: str, room_id: str, change: Callable[[_Tags], _Tags]) -> None:
        check_room_id(room_id)

        async def edit() -> None:
            tags, pos = await self._read(user_id, room_id)
            changed = change(tags)
            if changed != tags:
                content = {"tags": changed}
                await self._account_data.write(user_id, TAG, content, room_id, computed_on=pos)

        await self._edits.make((user_id, room_id), edit)

    async def _read(self, user_id: str, room_id: str) -> tuple[_Tags, int]:
        row = await self._store.get(user_id, room_id, TAG)
        if row is None:
            return {}, 0
        tags = orjson.loads(row.content).get("tags")
        return (tags if isinstance(tags, dict) else {}), row.pos


def _check_tag(tag: str) -> None:
    # "The name of a tag MUST NOT exceed 255 bytes."
    if not tag or len(tag.encode()) > MAX_TAG_BYTES:
        raise invalid_param(f"A tag has 1 to {MAX_TAG_BYTES} bytes")


def _check_content(content: Mapping[str, Any]) -> None:
    order = content.get("order")
    if "order" in content and (
        isinstance(order, bool) or not isinstance(order, int | float) or not 0 <= order <= 1
    ):
        raise bad_json("'order' must be a number from 0 to 1")
    if len(orjson.dumps(content)) > MAX_TAG_CONTENT:
        raise MatrixError("M_TOO_LARGE", 413, f"A tag may have at most {MAX_TAG_CONTENT} bytes")
