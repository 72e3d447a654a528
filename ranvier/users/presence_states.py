"""The presence of everybody, as every process knows it from the bus."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from typing import Final

import msgspec

from ranvier.log.bus import Bus, Ephemeral
from ranvier.wire.tokens import Token

PRESENCE: Final = "presence"
OWNER: Final = "presence_owner"
"""The kind of what says that another process now tells of a user; to clients that is no news."""

ONLINE: Final = "online"
UNAVAILABLE: Final = "unavailable"
OFFLINE: Final = "offline"


class PresenceState(msgspec.Struct, frozen=True, array_like=True):
    """What one user is; ``process`` is the one that says so. ``last_active_ts`` in milliseconds.

    ``presumed``: the process has it from one that is gone. Whoever the user is connected to says so then.
    """

    presence: str
    last_active_ts: int
    currently_active: bool
    status_msg: str | None
    process: str
    presumed: bool = False

    def same_for_others(self, other: PresenceState | None) -> bool:
        """Tell whether nobody need be told that this took the place of the other."""
        return (
            other is not None
            and other.presence == self.presence
            and other.currently_active == self.currently_active
            and other.status_msg == self.status_msg
        )


_decoder = msgspec.json.Decoder(PresenceState)
_encode = msgspec.json.Encoder().encode

Listener = Callable[[str, PresenceState], None]
OwnerListener = Callable[[str, str], None]
"""Is called with a user and the process that tells of them from now on."""


class PresenceStates:
    """Hold the newest state of each user, by the order in which they came. Bounded: the oldest go."""

    def __init__(self, *, bus: Bus, max_users: int = 100_000) -> None:
        self._bus = bus
        self._max_users = max_users
        self._epoch = bus.ephemeral_now()[1]
        self._floor = 0
        self._states: OrderedDict[str, tuple[int, PresenceState]] = OrderedDict()
        self._present: set[str] = set()
        self._of_process: dict[str, set[str]] = {}  # those who are present
        self._listeners: list[Listener] = []
        self._on_reset: list[Callable[[], None]] = []
        self._on_taken: list[OwnerListener] = []
        bus.listen(ephemerals=self._on_message)

    @property
    def present(self) -> Set[str]:
        """Who is not offline. Do not change it, and copy it before awaiting."""
        return self._present

    def listen(self, changed: Listener, reset: Callable[[], None], taken: OwnerListener) -> None:
        """Have ``changed`` called for each state and ``taken`` for each new owner.

        And ``reset`` when the bus began anew.
        """
        self._listeners.append(changed)
        self._on_reset.append(reset)
        self._on_taken.append(taken)

    def get(self, user_id: str) -> PresenceState | None:
        """Give the state of a user, None for one who was not online lately."""
        known = self._states.get(user_id)
        return None if known is None else known[1]

    def processes(self) -> Set[str]:
        """Give the processes that say of somebody that they are present."""
        return self._of_process.keys()

    def of_process(self, process: str) -> list[str]:
        """Give those who are present by what a process says."""
        return list(self._of_process.get(process, ()))

    def users(self) -> Iterator[str]:
        """Give everybody of whom there is a state."""
        return iter(self._states)

    def changed(self, since: Token, upto: Token) -> list[str] | None:
        """Give the users whose state changed between two tokens; None where that is not known any more."""
        if since.epoch != upto.epoch or self._epoch != upto.epoch or since.ephemeral < self._floor:
            return None
        found: list[str] = []
        for user_id, (count, _) in reversed(self._states.items()):
            if count <= since.ephemeral:
                break
            if count <= upto.ephemeral:
                found.append(user_id)
        return found

    def seed(self, user_id: str, state: PresenceState) -> None:
        """Take note of a state without telling anybody."""
        if user_id not in self._states:
            self._set(user_id, 0, state)
            self._states.move_to_end(user_id, last=False)

    async def publish(self, user_id: str, state: PresenceState) -> bool:
        """Tell every process; False if that could not be done."""
        return await self._bus.publish_ephemeral(PRESENCE, user_id, _encode(state)) is not None

    async def take(self, user_id: str, process: str) -> bool:
        """Tell every process who tells of a user from now on; False if that could not be done."""
        return await self._bus.publish_ephemeral(OWNER, user_id, process.encode()) is not None

    def _on_message(self, message: Ephemeral) -> None:
        if message.epoch != self._epoch:
            self._epoch = message.epoch
            self._states.clear()
            self._present.clear()
            self._of_process.clear()
            self._floor = 0
            for reset in self._on_reset:
                reset()
        if message.kind == OWNER:
            self._on_owner(message.key, message.body.decode())
        elif message.kind == PRESENCE:
            self._on_state(message)

    def _on_owner(self, user_id: str, process: str) -> None:
        known = self._states.get(user_id)
        if known is None or known[1].presence == OFFLINE:
            return
        self._keep(user_id, known[0], msgspec.structs.replace(known[1], process=process, presumed=False))
        for taken in self._on_taken:
            taken(user_id, process)

    def _on_state(self, message: Ephemeral) -> None:
        known = self._states.get(message.key)
        if known is not None and known[0] >= message.count:
            return
        state = _decoder.decode(message.body)
        if known is not None and (state.presumed or known[1].presumed) and state.same_for_others(known[1]):
            # Processes find out among themselves whose the user is: to clients that is no news.
            self._keep(message.key, known[0], state)
        else:
            self._set(message.key, message.count, state)
        while len(self._states) > self._max_users:
            user_id, (count, old) = self._states.popitem(last=False)
            self._present.discard(user_id)
            self._leave(user_id, old)
            self._floor = max(self._floor, count)
        for listener in self._listeners:
            listener(message.key, state)

    def _set(self, user_id: str, count: int, state: PresenceState) -> None:
        self._keep(user_id, count, state)
        self._states.move_to_end(user_id)

    def _keep(self, user_id: str, count: int, state: PresenceState) -> None:
        if (known := self._states.get(user_id)) is not None and known[1].process != state.process:
            self._leave(user_id, known[1])
        self._states[user_id] = (count, state)
        if state.presence == OFFLINE:
            self._present.discard(user_id)
            self._leave(user_id, state)
        else:
            self._present.add(user_id)
            self._of_process.setdefault(state.process, set()).add(user_id)

    def _leave(self, user_id: str, state: PresenceState) -> None:
        users = self._of_process.get(state.process)
        if users is not None:
            users.discard(user_id)
            if not users:
                del self._of_process[state.process]
