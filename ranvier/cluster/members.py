"""Who is there: each worker announces itself in Redis with a short lease, and looks who else did.

Nothing lists workers anywhere. Redis tells of newcomers within a second; workers also greet each other over
their links, so that a start is known at once, and a link that breaks tells at once of a death.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Protocol

import msgspec

from ranvier.log.beats import until_beat_s
from ranvier.wire.figures import Figures
from ranvier.wire.members import DRAINING, Member, decode_members

logger = logging.getLogger(__name__)

BEAT_S: Final = 1.0
LEASE_S: Final = 4.0
FRESH_S: Final = 3.0
"""For how long what a worker announced is as good as new."""

Change = Callable[[], None]


class Registry(Protocol):
    """Where workers announce themselves. Every method raises ``RegistryLostError`` while it is not there."""

    async def announce(self, name: str, value: bytes, lease_ms: int) -> list[bytes]:
        """Keep a worker's announcement for a while and give everybody's."""

    async def all(self) -> list[bytes]:
        """Give everybody's announcement."""

    async def withdraw(self, name: str) -> None:
        """Forget a worker."""


class RegistryLostError(Exception):
    """Say that the registry cannot be reached now."""


class NameTakenError(Exception):
    """Say that another worker of this name is running."""


class Counts(Protocol):
    """Count what a worker tells of itself."""

    def __call__(self) -> dict[str, int | bool | Figures]:
        """Give some of ``pos``, ``requests``, ``connections``, ``bus_connected``, ``figures``."""


class Members:
    """Know the workers that are alive, this one included. ``run`` must be running in a task of the process.

    ``generation`` grows whenever it changes who can be asked, or for what; ``listen`` has a function called
    then.
    """

    def __init__(self, own: Member, registry: Registry, figures: Counts) -> None:
        self.own = own
        self.generation = 0
        self._registry = registry
        self._figures = figures
        self._others: dict[str, Member] = {}
        self._heard: dict[str, float] = {}  # when each other's beat was last seen to go on
        self._lost: dict[str, Member] = {}  # who was found dead: the announcement lies in Redis for a while
        self._listeners: list[Change] = []
        self._cpu = (time.monotonic(), time.process_time())
        self._reached_since: float | None = None

    def alive(self) -> Sequence[Member]:
        """Give the workers that are alive, those that are draining too, in order of their names."""
        return sorted((self.own, *self._others.values()), key=lambda member: member.name)

    def others(self) -> Sequence[Member]:
        """Give all but this one."""
        return list(self._others.values())

    def find(self, name: str) -> Member | None:
        """Give the worker of a name, if it is alive."""
        return self.own if name == self.own.name else self._others.get(name)

    def heard_s_ago(self, name: str) -> float:
        """Give how old is what is known of a worker, in seconds; 0 for this one."""
        heard_s = self._heard.get(name)
        return 0.0 if heard_s is None else time.monotonic() - heard_s

    def is_fresh(self, name: str) -> bool:
        """Tell whether what is known of another worker is of the last seconds."""
        heard_s = self._heard.get(name)
        return heard_s is not None and time.monotonic() - heard_s < FRESH_S

    @property
    def knows_all(self) -> bool:
        """Whether whoever is alive has had the time to be heard of since the registry is there."""
        return self._reached_since is not None and time.monotonic() - self._reached_since > LEASE_S

    def listen(self, listener: Change) -> None:
        """Have ``listener`` called whenever it changes who can be asked, or for what."""
        self._listeners.append(listener)

    def announcement(self) -> bytes:
        """Give what this worker says of itself now."""
        return msgspec.json.encode(self.own)

    async def start(self) -> None:
        """Announce this worker for the first time. Raises NameTakenError, RegistryLostError."""
        deadline = time.monotonic() + LEASE_S + BEAT_S
        while (other := self._namesake(decode_members(await self._registry.all()))) is not None:
            if time.monotonic() > deadline:
                raise NameTakenError(
                    f"another worker named {other.name} is running (process {other.pid} on {other.host}); "
                    "each worker needs a worker_name of its own"
                )
            await asyncio.sleep(BEAT_S / 4)
        await self.beat()

    async def run(self) -> None:
        """Announce this worker once a second, for ever."""
        while True:
            await asyncio.sleep(until_beat_s(BEAT_S))
            await self._try_beat()

    async def beat(self) -> None:
        """Announce this worker and take in what others announced. Raises RegistryLostError."""
        self._renew()
        values = await self._registry.announce(self.own.name, self.announcement(), int(LEASE_S * 1000))
        self._take_all(decode_members(values))

    def greet(self, value: bytes) -> None:
        """Take the announcement of a worker that speaks to this one."""
        for member in decode_members([value]):
            self._take(member)

    def lose(self, name: str, instance: str) -> None:
        """Believe that a worker is gone, until it is heard of again."""
        member = self._others.get(name)
        if member is not None and member.instance == instance:
            logger.info("Worker %s is gone", name)
            self._lost[name] = member
            self._drop(name)

    async def drain(self) -> None:
        """Say that this worker takes nothing new."""
        self._change(state=DRAINING)
        await self._try_beat()

    async def leave(self) -> None:
        """Withdraw this worker."""
        try:
            await self._registry.withdraw(self.own.name)
        except RegistryLostError:
            logger.info("Redis is not there to be told that this worker leaves; it will see")

    def set_roles(self, roles: Sequence[str]) -> None:
        """Change what this worker is sent."""
        self._change(roles=tuple(roles))

    def set_writers(self, count: int) -> None:
        """Say on how many of this machine's workers rooms are to be placed; 0: on all."""
        self._change(writers=count)

    def let_restart(self) -> None:
        """Say that something starts this worker again when it ends."""
        self._change(restarts=True)

    def _change(self, **what: object) -> None:
        """Change what this worker says of itself, and have it told at once over the links.

        It counts as an announcement: others let be what is no newer than what they know.
        """
        self.own = msgspec.structs.replace(self.own, beat=self.own.beat + 1, **what)
        self._changed()

    # -- keeping ---------------------------------------------------------------------------------------

    async def _try_beat(self) -> None:
        try:
            await self.beat()
        except RegistryLostError as error:
            if self._reached_since is not None:
                logger.warning("This worker cannot be announced: %s", error)
            self._reached_since = None

    def _renew(self) -> None:
        now, cpu = time.monotonic(), time.process_time()
        since, cpu_before = self._cpu
        load = (cpu - cpu_before) / (now - since) if now - since > BEAT_S / 2 else self.own.load
        if now - since > BEAT_S / 2:
            self._cpu = (now, cpu)
        self.own = msgspec.structs.replace(
            self.own,
            beat=self.own.beat + 1,
            load=round(load, 3),
            memory_bytes=memory_bytes() or self.own.memory_bytes,
            **self._figures(),
        )

    def _namesake(self, members: Sequence[Member]) -> Member | None:
        for member in members:
            if member.name == self.own.name and member.instance != self.own.instance:
                return None if _is_dead(member, self.own.host) else member
        return None

    def _take_all(self, members: Sequence[Member]) -> None:
        now = time.monotonic()
        if self._reached_since is None:
            self._reached_since = now
        for member in members:
            self._take(member)
        if now - self._reached_since > LEASE_S:  # a Redis that is new or was away knows nobody yet
            for name in [name for name in self._others if now - self._heard[name] > LEASE_S]:
                logger.warning("Worker %s has not been heard of for %.0f s", name, LEASE_S)
                self._drop(name)

    def _take(self, member: Member) -> None:
        if member.name == self.own.name:
            if member.instance != self.own.instance and member.started_ts > self.own.started_ts:
                logger.error(
                    "Another worker is named %s (process %d on %s)", member.name, member.pid, member.host
                )
            return
        known = self._others.get(member.name)
        lost = self._lost.get(member.name)
        for before in (known, lost):
            if before is not None and before.instance == member.instance and before.beat >= member.beat:
                return
        self._lost.pop(member.name, None)
        self._others[member.name] = member
        self._heard[member.name] = time.monotonic()
        if known is None:
            logger.info("Worker %s is there (%s)", member.name, member.address)
        if known is None or placing(known) != placing(member):
            self._changed()

    def _drop(self, name: str) -> None:
        del self._others[name], self._heard[name]
        self._changed()

    def _changed(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()


def placing(member: Member) -> tuple[object, ...]:
    """Give what placement and links go by."""
    return member.instance, member.address, member.state, member.roles, member.writers, member.fronted


def _is_dead(member: Member, host: str) -> bool:
    if member.host != host:
        return False
    try:
        os.kill(member.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@cache
def _statm() -> int:
    # Kept open, as it is read each second, and to open it costs several times as much.
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def memory_bytes() -> int:
    """Give how much memory this process holds; 0 if it cannot open another file to find out."""
    try:
        return int(os.pread(_statm(), 200, 0).split()[1]) * resource.getpagesize()
    except OSError as error:
        logger.debug("It cannot be known how much memory is used: %s", error)
        return 0
