"""What users are shown of each other's presence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ranvier.config.rooms import PresenceConfig
from ranvier.log.clock import Clock
from ranvier.rooms.memberships import Memberships
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import forbidden
from ranvier.storage.presence import PresenceStore
from ranvier.users.presence_states import OFFLINE, ONLINE, PresenceState, PresenceStates

_FEW: Final = 20


class ShownPresence:
    """Say who may see whose presence, and what of it."""

    def __init__(
        self,
        *,
        config: PresenceConfig,
        states: PresenceStates,
        store: PresenceStore,
        memberships: Memberships,
        rooms: Rooms,
        clock: Clock,
    ) -> None:
        self._config = config
        self._states = states
        self._store = store
        self._memberships = memberships
        self._rooms = rooms
        self._clock = clock

    async def status(self, asking: str, user_id: str) -> dict[str, Any]:
        """Give the presence of a user. Raises 403 ``M_FORBIDDEN`` to who shares no room with them."""
        if asking != user_id and not await self._share(asking, user_id):
            raise forbidden("You are not allowed to see their presence")
        if not self._config.enabled:
            return {"presence": OFFLINE}
        state = self._states.get(user_id)
        if state is None:
            row = await self._store.get(user_id)
            if row is None:
                return {"presence": OFFLINE}
            state = PresenceState(OFFLINE, row.last_active_ts, False, row.status_msg, "")
        return self.content(state)

    def content(self, state: PresenceState) -> dict[str, Any]:
        """Give the content of ``m.presence``, as of now."""
        ago_ms = max(0, self._clock.now_ms() - state.last_active_ts)
        if state.currently_active:
            # Nobody is told of each activity of who is active, but when there was none for so long.
            ago_ms = min(ago_ms, self._config.last_active_granularity_ms)
        content: dict[str, Any] = {"presence": state.presence}
        if state.last_active_ts:
            content["last_active_ago"] = ago_ms
        if state.presence == ONLINE:
            content["currently_active"] = state.currently_active
        if state.status_msg is not None:
            content["status_msg"] = state.status_msg
        return content

    async def sharing(self, room_ids: Sequence[str], user_ids: set[str]) -> set[str]:
        """Give those of some users who are joined to one of some rooms."""
        if len(user_ids) <= _FEW:
            rooms = set(room_ids)
            return {it for it in user_ids if not rooms.isdisjoint(await self._memberships.joined(it))}
        found: set[str] = set()
        unknown: list[str] = []
        for room_id in room_ids:
            room = self._rooms.held(room_id)
            if room is None:
                unknown.append(room_id)
            else:
                found |= user_ids & room.joined
        rest = user_ids - found
        if unknown and rest:
            found |= await self._store.sharing(unknown, list(rest))
        return found

    async def _share(self, one: str, other: str) -> bool:
        rooms = await self._memberships.joined(one)
        return not set(rooms).isdisjoint(await self._memberships.joined(other))
