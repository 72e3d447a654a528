"""Presence of the users that are connected to this process: who is online, idle, gone."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

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
_TAKE_WITHIN_S: Final = 5.0
"""Not all at once; and who has polled for less long than this polls now."""

_AT_ONCE: Final = 100
_AGAIN_S: Final = 3.0
"""After which time it is tried again to tell what could not be told."""


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
    """What a user's devices do here. ``last_active_ts`` in milliseconds since the epoch.

    ``told_s`` is when any process told of them last, ``take_s`` from when on this one is to.
    """

    __slots__ = ("devices", "last_active_ts", "status_msg", "take_s", "told_anew", "told_s")

    def __init__(self, status_msg: str | None, last_active_ts: int) -> None:
        self.devices: dict[str, _Device] = {}
        self.status_msg = status_msg
        self.last_active_ts = last_active_ts
        self.told_anew = False
        self.take_s: float | None = None
        self.told_s = -math.inf

    @property
    def is_syncing(self) -> bool:
        return any(device.open_syncs for device in self.devices.values())


class Presence:
    """Follow what the devices of users do, and tell the others when it makes a difference.

    A sync costs some look-ups in memory: nobody is told and nothing is written unless the user's state
    changes. What is written (status messages, who is connected) is written in batches.

    One process tells of each user, and another one where the user polls takes that over without a word to
    clients: behind a proxy each poll may come to another process, and a poll that ended says nothing then.
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
    ) -> None:
        self._config = config
        self._states = states
        self._store = store
        self._clock = clock
        self._process = process
        self._connected: dict[str, _Connected] = {}
        self._deadlines: Deadlines[str] = Deadlines(clock)
        self._unwritten: dict[str, PresenceRow] = {}
        self._telling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        states.listen(self._on_state, self._on_reset, self._on_taken)
        tail.listen(self._on_rows)

    @property
    def enabled(self) -> bool:
        """Whether the server has presence at all."""
        return self._config.enabled

    # -- what users do -----------------------------------------------------------------------------

    @asynccontextmanager
    async def syncing(self, user_id: str, device_id: str | None, presence: str) -> AsyncIterator[None]:
        """Note that a device syncs, for as long as it does."""
        device: _Device | None = None
        if self.enabled:
            device = await self._see(user_id, device_id, presence)
        if device is None:
            yield
            return
        device.open_syncs += 1
        if (user := self._connected.get(user_id)) is not None:
            self._take_soon(user_id, user)
            self._schedule(user_id)
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
        device = self._device(user, device_id, presence)
        if presence == ONLINE:
            user.last_active_ts = self._clock.now_ms()
        if self._differs(user_id, user):
            return None
        device.open_syncs += 1
        self._take_soon(user_id, user)
        self._schedule(user_id)
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
            self._device(user, device_id, presence)
        await self._tell(user_id)

    async def _see(self, user_id: str, device_id: str | None, presence: str) -> _Device | None:
        if presence == OFFLINE:  # "the client is not marked as being online when it uses this API"
            user = self._connected.get(user_id)
            if user is not None and user.devices.pop(device_id or "", None) is not None:
                await self._tell(user_id)
            return None
        user = await self._user(user_id)
        device = self._device(user, device_id, presence)
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

    def _device(self, user: _Connected, device_id: str | None, presence: str) -> _Device:
        device = user.devices.setdefault(device_id or "", _Device())
        device.presence = presence
        device.until_s = self._clock.monotonic() + self._timeout_s
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
        state, known = self._state_of(user), self._states.get(user_id) or _UNKNOWN
        if user.told_anew or known.presumed:
            return True
        return not state.same_for_others(known) and not self._sees_more(known, state)

    def _sees_more(self, known: PresenceState, state: PresenceState) -> bool:
        """Tell whether another process tells of the user, and knows of more than happens here."""
        return (
            self._is_elsewhere(known)
            and state.status_msg == known.status_msg
            and _level(state) < _level(known)
        )

    def _is_elsewhere(self, known: PresenceState) -> bool:
        """Tell whether another process, which is there, tells of the user."""
        return known.process not in ("", self._process) and not known.presumed

    def _take_soon(self, user_id: str, user: _Connected) -> None:
        """Tell of a user before long, if another process does: it may not see that they go on.

        Since it told of the user it has had one that polled, whom it does not say to be gone for some time.
        """
        known = self._states.get(user_id)
        if user.take_s is None and known is not None and known.process != self._process:
            soon_s = max(self._clock.monotonic(), user.told_s + self._timeout_s / 2)
            user.take_s = soon_s + random.random() * _TAKE_WITHIN_S

    async def _tell(self, user_id: str, *, by_itself: bool = False) -> None:
        """Tell what a user is now, if that is news. ``by_itself``: nobody did anything, but time passed."""
        async with self._lock_of(user_id):
            user = self._connected.get(user_id)
            if user is None:
                return
            state, before = self._state_of(user), self._states.get(user_id) or _UNKNOWN
            if takes := user.take_s is not None and user.take_s <= self._clock.monotonic():
                user.take_s = None
            if state.presence == OFFLINE:
                self._deadlines.drop(user_id)
                del self._connected[user_id]
            else:
                self._schedule(user_id)
            if (by_itself or state.presence == OFFLINE) and self._sees_more(before, state):
                user.told_anew = False
                return
            if user.told_anew and by_itself and self._is_elsewhere(before) and not user.is_syncing:
                user.told_anew = not state.same_for_others(before)  # where they poll it is told, too
            if not user.told_anew and not before.presumed and state.same_for_others(before):
                if takes and before.process != self._process and self._polls(user):
                    await self._take(user_id, user)
                return
            user.told_anew = False
            self._note(user_id, state, before)
            if not await self._states.publish(user_id, state):
                # Even one who is gone is kept until it can be told.
                self._connected.setdefault(user_id, user).told_anew = True
                self._deadlines.set(user_id, self._clock.monotonic() + _AGAIN_S)

    def _polls(self, user: _Connected) -> bool:
        """Tell whether a user polls here; who is answered at once does so now and then."""
        lately_s = self._clock.monotonic() + self._timeout_s - _TAKE_WITHIN_S
        return user.is_syncing or any(device.until_s > lately_s for device in user.devices.values())

    async def _take(self, user_id: str, user: _Connected) -> None:
        if not await self._states.take(user_id, self._process):
            user.take_s = self._clock.monotonic() + _AGAIN_S
            self._schedule(user_id)

    def _lock_of(self, user_id: str) -> asyncio.Lock:
        lock = self._telling.get(user_id)
        if lock is None:
            lock = self._telling[user_id] = asyncio.Lock()
        return lock

    def _schedule(self, user_id: str) -> None:
        """Look at the user again when the state may change by itself."""
        user = self._connected.get(user_id)
        if user is None or (user.told_anew and user_id in self._deadlines):
            return
        times = [device.until_s for device in user.devices.values() if not device.open_syncs]
        if user.take_s is not None:
            times.append(user.take_s)
        if any(device.presence == ONLINE for device in user.devices.values()):
            idle_ms = self._clock.now_ms() - user.last_active_ts
            limits_ms = (self._config.last_active_granularity_ms, self._config.idle_timeout_ms)
            now_s = self._clock.monotonic()
            times += [now_s + (limit - idle_ms) / 1000 for limit in limits_ms if idle_ms < limit]
        if times:
            self._deadlines.set(user_id, min(times))

    async def settle(self) -> None:
        """Tell of those whose state changed with time."""
        due = self._deadlines.due()
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*(self._settle(user_id) for user_id in due[start : start + _AT_ONCE]))

    async def _settle(self, user_id: str) -> None:
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
        user.told_s = self._clock.monotonic()
        if state.presumed:  # this is the answer: the user is connected here
            user.told_anew = True
            self._deadlines.set(user_id, self._clock.monotonic())
        if state.process == self._process:
            if state.presence == OFFLINE:  # they came back before this was heard
                self._deadlines.set(user_id, self._clock.monotonic())
            return
        if not state.presumed and not user.told_anew:  # else it is what is here that is still to be told
            user.status_msg = state.status_msg
        user.last_active_ts = max(user.last_active_ts, state.last_active_ts)
        self._on_taken(user_id, state.process)
        # The user is connected to two processes for a while: the one that sees more is right.
        if user.is_syncing and _level(self._state_of(user)) > _level(state):
            user.told_anew = True
            self._deadlines.set(user_id, self._clock.monotonic())

    def _on_taken(self, user_id: str, process: str) -> None:
        user = self._connected.get(user_id)
        if user is not None:
            user.told_s, user.take_s = self._clock.monotonic(), None
            if user.is_syncing:
                self._take_soon(user_id, user)
                self._schedule(user_id)

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


def _level(state: PresenceState) -> tuple[int, bool]:
    return _RANK[state.presence], state.currently_active


_UNKNOWN: Final = PresenceState(OFFLINE, 0, False, None, "")
