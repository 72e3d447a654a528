"""Presence of the users that are connected to this process: who is online, idle, gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ranvier.config.rooms import PresenceConfig
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import MatrixError
from ranvier.storage.batches import write_each
from ranvier.storage.presence import PresenceRow, PresenceStore
from ranvier.users.deadlines import Deadlines
from ranvier.users.presence_states import OFFLINE, ONLINE, UNAVAILABLE, PresenceState, PresenceStates
from ranvier.users.receipts import RECEIPT
from ranvier.wire.log_rows import EventRow, Row

logger = logging.getLogger(__name__)

_FLUSH_S: Final = 5.0
_BATCH: Final = 1000
GRACE_S: Final = 60.0
"""How much longer than ``sync_online_timeout`` a client may take whose long poll is not seen to end."""

_AGAIN_S: Final = 3.0
"""After which time it is tried again to tell what could not be told."""


FindOut = Callable[[str, PresenceState], None]
"""Is given a user whose devices are gone, and what is known of them: unless they are elsewhere, to say so."""


class OpenSync:
    """A device that syncs, as ``sync_begins`` gives it to ``sync_ends``."""

    __slots__ = ()


class _Device(OpenSync):
    __slots__ = ("open_syncs", "presence", "until_s")

    def __init__(self) -> None:
        self.presence = UNAVAILABLE
        self.open_syncs = 0
        self.until_s = 0.0


NOT_FOLLOWED: Final = OpenSync()


class _Connected:
    """What a user's devices do here. ``last_active_ts`` in milliseconds since the epoch."""

    __slots__ = ("devices", "last_active_ts", "status_msg", "told_anew")

    def __init__(self, status_msg: str | None, last_active_ts: int) -> None:
        self.devices: dict[str, _Device] = {}
        self.status_msg = status_msg
        self.last_active_ts = last_active_ts
        self.told_anew = False


class Presence:
    """Follow what the devices of users do, and tell the others when it makes a difference.

    A sync costs some look-ups in memory: nobody is told and nothing is written unless the user's state
    changes. What is written (status messages, who is connected) is written in batches.
    Source: client-server API, "Presence".
    """

    def __init__(
        self,
        *,
        config: PresenceConfig,
        states: PresenceStates,
        store: PresenceStore,
        tail: Tail,
        clock: Clock,
        process: str,
        find_out: FindOut | None = None,
    ) -> None:
        """Follow ``tail``. ``find_out`` is there where a user may be connected to another process as well."""
        self._config = config
        self._states = states
        self._store = store
        self._clock = clock
        self._process = process
        self._find_out = find_out
        self._connected: dict[str, _Connected] = {}
        self._deadlines: Deadlines[str] = Deadlines(clock)
        self._unwritten: dict[str, PresenceRow] = {}
        self._telling = asyncio.Lock()
        states.listen(self._on_state, self._on_reset)
        tail.listen(self._on_rows)

    @property
    def enabled(self) -> bool:
        """Whether the server has presence at all."""
        return self._config.enabled

    # -- what users do -----------------------------------------------------------------------------

    async def touch(self, user_id: str, device_id: str | None, presence: str) -> None:
        """Note that a device syncs. ``presence`` is ``set_presence`` of ``/sync``.

        The end of the sync is not seen: use ``syncing`` where it can be.
        """
        if self.enabled:
            await self._see(user_id, device_id, presence, self._timeout_s + GRACE_S)

    @asynccontextmanager
    async def syncing(self, user_id: str, device_id: str | None, presence: str) -> AsyncIterator[None]:
        """Note that a device syncs, for as long as it does."""
        device: _Device | None = None
        if self.enabled:
            device = await self._see(user_id, device_id, presence, self._timeout_s)
        if device is None:
            yield
            return
        device.open_syncs += 1
        try:
            yield
        finally:
            self.sync_ends(user_id, device)

    def sync_begins(self, user_id: str, device_id: str | None, presence: str) -> OpenSync | None:
        """Note that a device goes on to sync; ``sync_ends`` is to be called with what this gives.

        None where somebody has to be told of it, or something to be read: ``syncing`` does that.
        """
        if not self.enabled:
            return NOT_FOLLOWED
        user = self._connected.get(user_id)
        if user is None or presence == OFFLINE or (device_id or "") not in user.devices:
            return None
        device = self._device(user, device_id, presence, self._timeout_s)
        if presence == ONLINE:
            user.last_active_ts = self._clock.now_ms()
        if self._differs(user_id, user):
            return None
        self._schedule(user_id)
        device.open_syncs += 1
        return device

    def sync_ends(self, user_id: str, device: OpenSync) -> None:
        """Note that a sync of a device ended."""
        if isinstance(device, _Device):
            device.open_syncs -= 1
            device.until_s = self._clock.monotonic() + self._timeout_s
            self._schedule(user_id)

    async def set(self, user_id: str, device_id: str | None, presence: str, status_msg: str | None) -> None:
        """Set the presence of a device and the status message of its user."""
        if not self.enabled:
            return
        user = await self._user(user_id)
        user.status_msg = status_msg
        # "the activity time is updated to reflect that activity"
        user.last_active_ts = self._clock.now_ms()
        if presence == OFFLINE:
            user.devices.pop(device_id or "", None)
        else:
            self._device(user, device_id, presence, self._timeout_s)
        await self._tell(user_id)

    async def _see(
        self, user_id: str, device_id: str | None, presence: str, lasts_s: float
    ) -> _Device | None:
        if presence == OFFLINE:  # "the client is not marked as being online when it uses this API"
            user = self._connected.get(user_id)
            if user is not None and user.devices.pop(device_id or "", None) is not None:
                await self._tell(user_id)
            return None
        user = await self._user(user_id)
        device = self._device(user, device_id, presence, lasts_s)
        if presence == ONLINE:
            user.last_active_ts = self._clock.now_ms()
        if self._differs(user_id, user):
            await self._tell(user_id)
        else:
            self._schedule(user_id)
        return device

    async def _user(self, user_id: str) -> _Connected:
        user = self._connected.get(user_id)
        if user is not None:
            return user
        known = self._states.get(user_id)
        if known is None:
            row = self._unwritten.get(user_id) or await self._store.get(user_id)
            known = _UNKNOWN
            if row is not None:
                known = PresenceState(OFFLINE, row.last_active_ts, False, row.status_msg, "")
                self._states.seed(user_id, known)
        return self._connected.setdefault(user_id, _Connected(known.status_msg, known.last_active_ts))

    def _device(self, user: _Connected, device_id: str | None, presence: str, lasts_s: float) -> _Device:
        device = user.devices.setdefault(device_id or "", _Device())
        device.presence = presence
        device.until_s = self._clock.monotonic() + lasts_s
        return device

    def _on_rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, EventRow):
                if (user := self._connected.get(row.sender)) is not None:
                    self._active(row.sender, user, row.txn_device)
                if row.type == MEMBER and row.membership == "join" and row.state_key in self._connected:
                    # Those in the room do not know of the user yet. (Or only a name changed: many such are
                    # told of at once.)
                    self._connected[row.state_key].told_anew = True
                    self._deadlines.set(row.state_key, self._clock.monotonic())
            elif row.kind == RECEIPT and (user := self._connected.get(row.user_id or "")) is not None:
                self._active(row.user_id or "", user, None)

    def _active(self, user_id: str, user: _Connected, device_id: str | None) -> None:
        # "Any activity that bumps the last active time on any of the user's clients will cause the server
        # to automatically set their presence to online."
        user.last_active_ts = self._clock.now_ms()
        acting = [user.devices[device_id]] if device_id in user.devices else user.devices.values()
        for device in acting:
            device.presence = ONLINE
        if self._differs(user_id, user):
            self._deadlines.set(user_id, self._clock.monotonic())

    # -- what that makes of them -------------------------------------------------------------------

    @property
    def _timeout_s(self) -> float:
        return self._config.sync_online_timeout_ms / 1000

    def _state_of(self, user: _Connected) -> PresenceState:
        now_s = self._clock.monotonic()
        for device_id in [k for k, d in user.devices.items() if not d.open_syncs and d.until_s <= now_s]:
            del user.devices[device_id]
        presence = OFFLINE
        if user.devices:
            online = any(device.presence == ONLINE for device in user.devices.values())
            presence = ONLINE if online else UNAVAILABLE
        idle_ms = self._clock.now_ms() - user.last_active_ts
        if presence == ONLINE and idle_ms >= self._config.idle_timeout_ms:
            presence = UNAVAILABLE
        return PresenceState(
            presence=presence,
            last_active_ts=user.last_active_ts,
            currently_active=presence == ONLINE and idle_ms < self._config.last_active_granularity_ms,
            status_msg=user.status_msg,
            process=self._process,
        )

    def _differs(self, user_id: str, user: _Connected) -> bool:
        known = self._states.get(user_id)
        asked_for = known is not None and known.presumed
        return user.told_anew or asked_for or not self._state_of(user).same_for_others(known)

    async def _tell(self, user_id: str, *, by_itself: bool = False) -> None:
        """Tell what a user is now, if that is news; ``by_itself``: it is since time passed."""
        async with self._telling:
            user = self._connected.get(user_id)
            if user is None:
                return
            state, before = self._state_of(user), self._states.get(user_id)
            elsewhere = before is not None and before.process != self._process
            if state.presence == OFFLINE:
                self._deadlines.drop(user_id)
                del self._connected[user_id]
            else:
                self._schedule(user_id)
            if state.presence == OFFLINE and elsewhere and state.status_msg == (before and before.status_msg):
                return  # the user went on with another process, which says what they are
            before = before or _UNKNOWN
            if not user.told_anew:
                if self._find_out is not None and by_itself and state.presence == OFFLINE != before.presence:
                    self._find_out(user_id, before)  # who polls at another process is not told of
                    return
                if state.same_for_others(before) and not before.presumed:
                    return
            user.told_anew = False
            self._note(user_id, state, before)
            if not await self._states.publish(user_id, state):
                # Even one who is gone is kept until it can be told.
                self._connected.setdefault(user_id, user).told_anew = True
                self._deadlines.set(user_id, self._clock.monotonic() + _AGAIN_S)

    def _schedule(self, user_id: str) -> None:
        """Look at the user again when the state may change by itself."""
        user = self._connected.get(user_id)
        if user is None:
            return
        times = [device.until_s for device in user.devices.values() if not device.open_syncs]
        if any(device.presence == ONLINE for device in user.devices.values()):
            idle_ms = self._clock.now_ms() - user.last_active_ts
            limits_ms = (self._config.last_active_granularity_ms, self._config.idle_timeout_ms)
            now_s = self._clock.monotonic()
            times += [now_s + (limit - idle_ms) / 1000 for limit in limits_ms if idle_ms < limit]
        if times:
            self._deadlines.set(user_id, min(times))

    async def settle(self) -> None:
        """Tell of those whose state changed with time."""
        for user_id in self._deadlines.due():
            try:
                await self._tell(user_id, by_itself=True)
            except Exception:
                # One user must not be in the way of all others.
                logger.exception("What %s is cannot be told", user_id)

    # -- what others say ---------------------------------------------------------------------------

    def _on_state(self, user_id: str, state: PresenceState) -> None:
        user = self._connected.get(user_id)
        if user is None:
            return
        if state.presumed:  # this is the answer: the user is connected here
            user.told_anew = True
            self._deadlines.set(user_id, self._clock.monotonic())
        if state.process == self._process:
            return
        # The user is connected to two processes for a while: the one that sees more is right.
        user.status_msg = state.status_msg
        user.last_active_ts = max(user.last_active_ts, state.last_active_ts)
        if _RANK[self._state_of(user).presence] > _RANK[state.presence]:
            user.told_anew = True
            self._deadlines.set(user_id, self._clock.monotonic())

    def _on_reset(self) -> None:
        for user_id, user in self._connected.items():
            user.told_anew = True
            self._deadlines.set(user_id, self._clock.monotonic())

    # -- what is kept ------------------------------------------------------------------------------

    def _note(self, user_id: str, state: PresenceState, before: PresenceState) -> None:
        offline = state.presence == OFFLINE
        if (
            offline == (before.presence == OFFLINE)
            and state.status_msg == before.status_msg
            and (offline or before.process == self._process)
        ):
            return
        self._unwritten[user_id] = PresenceRow(
            user_id, state.status_msg, state.last_active_ts, None if offline else self._process
        )

    async def flush(self) -> None:
        """Write what is to be kept. What can not be written now is written later."""
        while self._unwritten:
            rows = [self._unwritten[user_id] for user_id in list(self._unwritten)[:_BATCH]]
            try:
                await write_each(self._store.put, rows)
            except MatrixError as error:
                logger.warning("Can not write presence: %s", error.message)
                return
            except Exception:
                logger.exception("Can not write presence")
                return
            for row in rows:
                if self._unwritten.get(row.user_id) is row:
                    del self._unwritten[row.user_id]

    async def run(self) -> None:
        """Tell of what changes with time and write what is to be kept, for ever."""
        try:
            written_s = self._clock.monotonic()
            while True:
                await self._deadlines.wait(_FLUSH_S if self._unwritten else None)
                await self.settle()
                if self._unwritten and self._clock.monotonic() - written_s >= _FLUSH_S:
                    await self.flush()
                    written_s = self._clock.monotonic()
        finally:
            await self.flush()


_RANK: Final = {OFFLINE: 0, UNAVAILABLE: 1, ONLINE: 2}
_UNKNOWN: Final = PresenceState(OFFLINE, 0, False, None, "")
