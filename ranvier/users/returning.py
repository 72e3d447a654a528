"""Users of a process that is gone: they come back, to whichever process, or they are offline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from ranvier.config.rooms import PresenceConfig
from ranvier.log.clock import Clock
from ranvier.log.turns import Turns
from ranvier.spec.errors import MatrixError
from ranvier.storage.presence import PresenceRow, PresenceStore
from ranvier.users.deadlines import Deadlines
from ranvier.users.presence_states import OFFLINE, UNAVAILABLE, PresenceState, PresenceStates

logger = logging.getLogger(__name__)

_GRACE_S: Final = 60.0
"""How much longer than ``sync_online_timeout`` a client may take whose long poll was not seen to end."""

_BATCH: Final = 5000
_IN_A_TURN: Final = 200
_ASKED_PER_S: Final = 2000
_MAX_OWN: Final = 20_000
_ANSWER_S: Final = 3.0
"""How long is waited for whoever a user is connected to, before the user is said to be offline."""

_AGAIN_S: Final = 3.0


class _Waiting:
    """One user who is waited for until ``until_s``. ``state`` is what was last known of them."""

    __slots__ = ("asked", "state", "until_s")

    def __init__(self, state: PresenceState, until_s: float) -> None:
        self.state = state
        self.until_s = until_s
        self.asked = False


class ReturningUsers:
    """Watch over users whom nobody watches over any more. ``run`` must be running.

    Who comes back is not told of: nothing changed for the others. So before a user is said to be offline all
    processes are asked, and the one that the user is connected to (``Presence``) answers.
    """

    def __init__(
        self,
        *,
        config: PresenceConfig,
        states: PresenceStates,
        store: PresenceStore,
        clock: Clock,
        process: str,
    ) -> None:
        self._config = config
        self._states = states
        self._store = store
        self._clock = clock
        self._process = process
        self._waiting: dict[str, _Waiting] = {}
        self._deadlines: Deadlines[str] = Deadlines(clock)
        self._unwritten: set[str] = set()
        self._claim_lost = False
        self._turns = Turns(1)
        states.listen(self._on_state, self._on_reset, lambda user_id, process: self._forget(user_id))

    async def left_by(self) -> set[str]:
        """Give the processes that users are connected to, the dead among them."""
        if not self._config.enabled:
            return set()
        # What was told is not written for some seconds, and what was written may not be told any more.
        return {*await self._store.processes(), *self._states.processes()}

    async def resume(self) -> None:
        """Take over those who were connected to this process in its life before."""
        if self._config.enabled:
            await self._watch(await self._store.of_process(self._process, limit=_MAX_OWN), _GRACE_S)
            await self._watch_told(self._process, _GRACE_S)

    async def take_over(self, process: str) -> None:
        """Take over those who were connected to a process that stays away."""
        if process == self._process:
            return
        rows: Sequence[PresenceRow] = ()
        while not rows or len(rows) == _BATCH:
            try:
                rows = await self._store.claim(process, self._process, limit=_BATCH)
            except MatrixError:
                self._claim_lost = True  # it may have been carried out: then they are among this process's
                raise
            # They have had the time since it is gone to go elsewhere.
            await self._watch(rows, 0.0)
            if not rows:
                break
        await self._watch_told(process, 0.0)

    async def _watch(self, rows: Sequence[PresenceRow], grace_s: float) -> None:
        async for some in self._turns.slices(rows, _IN_A_TURN):
            for row in some:
                kept = PresenceState(UNAVAILABLE, row.last_active_ts, False, row.status_msg, self._process)
                self._states.seed(row.user_id, kept)
                self._wait_for(row.user_id, self._states.get(row.user_id) or kept, grace_s)

    async def _watch_told(self, process: str, grace_s: float) -> None:
        async for some in self._turns.slices(self._states.of_process(process), _IN_A_TURN):
            for user_id in some:
                if (known := self._states.get(user_id)) is not None:
                    self._wait_for(user_id, known, grace_s)

    def _wait_for(self, user_id: str, state: PresenceState, grace_s: float) -> None:
        if user_id not in self._waiting:
            until_s = self._clock.monotonic() + self._config.sync_online_timeout_ms / 1000 + grace_s
            # Those of one process came at once, and are not all to be asked for at once.
            until_s += len(self._waiting) / _ASKED_PER_S
            self._waiting[user_id] = _Waiting(state, until_s)
            self._deadlines.set(user_id, until_s)

    # -- what becomes of them ----------------------------------------------------------------------

    async def settle(self) -> None:
        """Ask for those whose time has come, and say that those are offline of whom nobody answered."""
        if self._claim_lost:
            await self._find_claimed()
        for user_id in self._deadlines.due():
            try:
                await self._end(user_id)
            except Exception:
                # One user must not be in the way of all others.
                logger.exception("It can not be told whether %s is there", user_id)
                self._forget(user_id)
        await self._write()

    async def _end(self, user_id: str) -> None:
        waiting = self._waiting.get(user_id)
        if waiting is None:
            return
        now_s = self._clock.monotonic()
        known = self._states.get(user_id) or waiting.state
        if known.presence == OFFLINE:
            self._gone(user_id)
        elif not waiting.asked or now_s < waiting.until_s:
            question = msgspec.structs.replace(known, process=self._process, presumed=True)
            waiting.asked = await self._states.publish(user_id, question)
            if self._waiting.get(user_id) is waiting:
                answer_s = max(now_s + _ANSWER_S, waiting.until_s)
                self._deadlines.set(user_id, answer_s if waiting.asked else now_s + _AGAIN_S)
        else:
            offline = PresenceState(OFFLINE, known.last_active_ts, False, known.status_msg, self._process)
            if await self._states.publish(user_id, offline):
                self._gone(user_id)
            else:
                self._deadlines.set(user_id, now_s + _AGAIN_S)

    def _gone(self, user_id: str) -> None:
        self._forget(user_id)
        self._unwritten.add(user_id)

    def _forget(self, user_id: str) -> None:
        if self._waiting.pop(user_id, None) is not None:
            self._deadlines.drop(user_id)

    async def _write(self) -> None:
        if not self._unwritten:
            return
        gone = [user_id for user_id in self._unwritten if not self._is_back(user_id)]
        try:
            await self._store.left(gone, self._process)
        except MatrixError as error:
            logger.warning("Can not write who is offline: %s", error.message)
            return
        except Exception:
            logger.exception("Can not write who is offline")
            return
        self._unwritten.clear()

    def _is_back(self, user_id: str) -> bool:
        known = self._states.get(user_id)
        return known is not None and known.presence != OFFLINE

    async def _find_claimed(self) -> None:
        try:
            rows = await self._store.of_process(self._process, limit=_MAX_OWN)
        except MatrixError as error:
            logger.debug("Can not read who is to be waited for: %s", error)
            return
        self._claim_lost = False
        # Of those who are connected here this process said so.
        await self._watch([row for row in rows if not self._is_own(row.user_id)], 0.0)

    def _is_own(self, user_id: str) -> bool:
        known = self._states.get(user_id)
        return known is not None and known.process == self._process

    # -- what is said of them ----------------------------------------------------------------------

    def _on_state(self, user_id: str, state: PresenceState) -> None:
        # Should two wait for the same user, one of them goes on.
        if user_id in self._waiting and not (state.presumed and state.process >= self._process):
            self._forget(user_id)

    def _on_reset(self) -> None:
        """Say what they are to processes that know nothing any more."""
        for user_id, waiting in self._waiting.items():
            waiting.asked = False  # the question is void, too
            self._deadlines.set(user_id, self._clock.monotonic())

    async def run(self) -> None:
        """Look after them, for ever."""
        while True:
            await self._deadlines.wait(_AGAIN_S if self._unwritten or self._claim_lost else None)
            await self.settle()
