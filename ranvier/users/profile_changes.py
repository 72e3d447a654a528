"""New names and avatars reach the member events of all rooms, in the background.

What is to be done is in the table ``profile_changes``, written in the commit of the change itself, so a
restart loses nothing. Two processes that do it at once do no harm, but work for nothing: a member event that
says what is said already is not made again, and whoever wrote looks whether that is still the newest profile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import orjson

from ranvier.log.tail import Tail
from ranvier.rooms.append_event import RoomWriter
from ranvier.rooms.draft import Draft
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import MatrixError
from ranvier.storage.profiles import ProfileStore
from ranvier.users.profiles import IN_MEMBER_EVENTS, PROFILE, Profile
from ranvier.wire.log_rows import LogRow, Row

logger = logging.getLogger(__name__)

_USERS_AT_ONCE: Final = 4
_ROOMS_AT_ONCE: Final = 16
_RETRY_S: Final = 30.0


class ProfileChanges:
    """Bring changed profiles into rooms. ``run`` must be running in a task of the process."""

    def __init__(
        self, *, store: ProfileStore, memberships: Memberships, writer: RoomWriter, tail: Tail
    ) -> None:
        self._store = store
        self._memberships = memberships
        self._writer = writer
        self._tail = tail
        self._waiting: dict[str, None] = {}  # a set that keeps its order
        self._busy: set[str] = set()
        self._wake = asyncio.Event()
        self._running = False
        tail.listen(self._apply, changes=True)

    async def run(self) -> None:
        """Tell rooms of changes, those that were left by an earlier run first; for ever."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_USERS_AT_ONCE):
                    tasks.create_task(self._work())
                while True:
                    await self._look_for_more()
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._running = False
            self._waiting.clear()

    async def _look_for_more(self) -> None:
        """Take up what an earlier process left, and what failed."""
        try:
            user_ids, head = await self._store.to_be_told()
            # A room that says an old name is to be known as such here.
            if user_ids and await self._tail.wait_for(head):
                for user_id in user_ids:
                    self._add(user_id)
        except MatrixError as error:
            logger.warning("Changed profiles can not be read now: %s", error)

    async def _work(self) -> None:
        while True:
            user_id = next((it for it in self._waiting if it not in self._busy), None)
            if user_id is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            del self._waiting[user_id]
            self._busy.add(user_id)
            try:
                await self._tell_rooms(user_id)
            except MatrixError as error:
                logger.warning("The profile of %s is not in all rooms yet: %s", user_id, error)
            except Exception:
                # It stays in the table, and is tried again; the profiles of others must not wait for it.
                logger.exception("Bringing the profile of %s into rooms failed", user_id)
            finally:
                self._busy.discard(user_id)
                self._wake.set()

    async def _tell_rooms(self, user_id: str) -> None:
        """Bring the newest profile into every room, once more where it changed on the way."""
        try:
            await self._tell_all(user_id)
        except BaseException:
            # Another process may have done it meanwhile, and what was written here last be older than that.
            await self._leave_to_others(user_id)
            raise

    async def _leave_to_others(self, user_id: str) -> None:
        try:
            await self._store.tell_again(user_id)
        except MatrixError as error:
            logger.warning("It can not be noted that the profile of %s is to be told: %s", user_id, error)

    async def _tell_all(self, user_id: str) -> None:
        while True:
            stored = await self._store.get(user_id)
            if stored is None:
                return
            profile: Profile = orjson.loads(stored.document) if stored.document else {}
            rooms = await self._memberships.joined(user_id)
            for start in range(0, len(rooms), _ROOMS_AT_ONCE):
                some = rooms[start : start + _ROOMS_AT_ONCE]
                async with asyncio.TaskGroup() as tasks:
                    told = [tasks.create_task(self._tell(room_id, user_id, profile)) for room_id in some]
                errors = [error for task in told if (error := task.result()) is not None]
                if errors:
                    raise errors[0]
            latest = await self._store.get(user_id)
            if latest is None or latest.pos == stored.pos:
                await self._store.set_told(user_id, stored.pos)
                return

    async def _tell(self, room_id: str, user_id: str, profile: Profile) -> MatrixError | None:
        """Renew a member event; give what went wrong and may be better later."""

        def renew(draft: Draft) -> None:
            row = draft.state.row((MEMBER, user_id))
            if row is None or row.membership != "join":
                return
            content = _renewed(row.content, profile)
            if content != row.event.content:
                draft.add(sender=user_id, type=MEMBER, state_key=user_id, content=content)

        try:
            await self._writer.write(room_id, renew)
        except MatrixError as error:
            # 4xx: the room is gone or does not let the user say so, now or later.
            return error if error.status in (429, 503) else None
        return None

    def _add(self, user_id: str) -> None:
        self._waiting[user_id] = None
        self._wake.set()

    def _apply(self, rows: Sequence[Row]) -> None:
        if not self._running:
            return  # another process does it; the table tells what it left
        for row in rows:
            if isinstance(row, LogRow) and row.kind == PROFILE and row.key in IN_MEMBER_EVENTS:
                assert row.user_id is not None
                self._add(row.user_id)


def _renewed(content: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """Give the content of a member event with a new name and avatar.

    What belongs to the join itself stays behind: a reason, and who authorised it (whose signature a
    repeated event would need again).
    """
    kept = {
        key: value
        for key, value in content.items()
        if key not in (*IN_MEMBER_EVENTS, "reason", "join_authorised_via_users_server", "third_party_invite")
    }
    given = {key: profile[key] for key in IN_MEMBER_EVENTS if profile.get(key) is not None}
    return {**kept, **given}
