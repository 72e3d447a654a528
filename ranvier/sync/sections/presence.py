"""``presence`` of a sync answer: those who share a room with the user, and the user."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import orjson

from ranvier.config.rooms import PresenceConfig
from ranvier.rooms.rooms import Rooms
from ranvier.storage.presence import PresenceStore
from ranvier.sync.context import SyncContext
from ranvier.users.presence_states import OFFLINE, PresenceState, PresenceStates
from ranvier.users.shown_presence import ShownPresence


class PresenceSection:
    """Tell who is online; ``ignored`` gives the users of whom a user wants to hear nothing."""

    def __init__(
        self,
        *,
        config: PresenceConfig,
        states: PresenceStates,
        shown: ShownPresence,
        store: PresenceStore,
        rooms: Rooms,
        ignored: Callable[[str], Awaitable[frozenset[str]]],
    ) -> None:
        self._config = config
        self._states = states
        self._shown = shown
        self._store = store
        self._rooms = rooms
        self._ignored = ignored

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give everybody who is not offline (and, if so configured, those who are)."""
        if not self._is_wanted(context):
            return None
        found = await self._sharing(context, set(self._states.present))
        states = {user_id: state for user_id in found if (state := self._states.get(user_id)) is not None}
        if self._config.include_offline_users_on_sync:
            for row in await self._store.offline_sharing(context.joined):
                state = PresenceState(OFFLINE, row.last_active_ts, False, row.status_msg, "")
                states.setdefault(row.user_id, state)
        return await self._events(context, states.items())

    async def since(self, context: SyncContext) -> bytes | None:
        """Give those whose state changed, and who is present in rooms that the user joined."""
        assert context.since is not None
        changed = self._states.changed(context.since, context.upto)
        if not self._is_wanted(context) or (changed == [] and not context.newly_joined):
            return None
        users = set(self._states.users() if changed is None else changed)
        found = await self._sharing(context, users) if users else set()
        for room_id in context.newly_joined:
            room = await self._rooms.find(room_id)
            if room is not None:
                found |= self._states.present & room.joined
        states = [(user_id, state) for user_id in found if (state := self._states.get(user_id)) is not None]
        return await self._events(context, states)

    def _is_wanted(self, context: SyncContext) -> bool:
        return self._config.enabled and not context.filter.presence.is_nothing

    async def _sharing(self, context: SyncContext, users: set[str]) -> set[str]:
        found = await self._shown.sharing(context.joined, users - {context.user_id})
        if context.user_id in users:
            found.add(context.user_id)
        return found

    async def _events(
        self, context: SyncContext, states: Iterable[tuple[str, PresenceState]]
    ) -> bytes | None:
        ignored = await self._ignored(context.user_id)
        wanted = context.filter.presence
        events = [
            orjson.dumps({"type": "m.presence", "sender": user_id, "content": self._shown.content(state)})
            for user_id, state in states
            if user_id not in ignored and wanted.matches("m.presence", user_id)
        ]
        return b'{"events":[%b]}' % b",".join(events) if events else None
