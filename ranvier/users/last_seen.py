"""When and from where each device was last seen: noted on every request, written now and then."""

from __future__ import annotations

import asyncio
import logging

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.storage.batches import write_each
from ranvier.storage.devices import Sighting
from ranvier.users.devices import Devices
from ranvier.users.requester import Requester

logger = logging.getLogger(__name__)

WRITE_INTERVAL_S = 60.0
MAX_NOTED = 50_000
_MAX_AGENT_LENGTH = 500


class _Seen:
    """When (ms since the epoch) and from where a device made its latest request."""

    __slots__ = ("agent", "ip", "ts")

    def __init__(self, ts: int, ip: str, agent: str) -> None:
        self.ts = ts
        self.ip = ip
        self.agent = agent


class LastSeen:
    """Note who is seen, and write it every ``WRITE_INTERVAL_S``."""

    def __init__(self, *, devices: Devices, clock: Clock) -> None:
        self._devices = devices
        self._clock = clock
        self._noted: dict[tuple[str, str], _Seen] = {}

    def note(self, requester: Requester, ip: str, user_agent: str) -> None:
        """Note that a device made a request; past a bound, new devices wait for the next writing."""
        if requester.device_id is None:
            return
        key = (requester.user_id, requester.device_id)
        noted = self._noted.get(key)
        if noted is not None and noted.ip == ip and noted.agent == user_agent:
            noted.ts = self._clock.now_ms()
        elif noted is not None or len(self._noted) < MAX_NOTED:
            agent = user_agent[:_MAX_AGENT_LENGTH].replace("\0", "")
            self._noted[key] = _Seen(self._clock.now_ms(), ip, agent)

    async def write(self) -> None:
        """Write what was noted. What can not be written now is kept."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            sightings = [Sighting(*key, seen.ts, seen.ip, seen.agent) for key, seen in noted.items()]
            await write_each(self._devices.saw, sightings)
        except MatrixError as error:
            logger.warning("Can not write when devices were seen: %s", error.message)
            self._noted = {**noted, **self._noted}
        except Exception:
            logger.exception("Can not write when devices were seen")
            self._noted = {**noted, **self._noted}

    async def run(self) -> None:
        """Write now and then, and once more when the process ends."""
        try:
            while True:
                await asyncio.sleep(WRITE_INTERVAL_S)
                await self.write()
        finally:
            await self.write()
