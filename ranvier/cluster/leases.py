"""Jobs that must run once: whoever has the lease does them, and a late holder's writes are refused.

A holder that stands still for too long does not know that another one has taken over. So what must not be
done twice is written in a ``transaction`` of the lease, which is refused as soon as there is a later epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from ranvier.log.beats import until_beat_s
from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.storage.database import Connection, Database
from ranvier.storage.job_leases import JobLeaseStore

logger = logging.getLogger(__name__)

LEASE_MS: Final = 10_000
_LEFT_LEASES: Final = 3
"""For how many lengths of a lease nobody has a job before one takes it that is not there for it."""

_STANDING_IN_S: Final = 3600.0
"""After which time such a one looks whether somebody else would rather."""


class LeaseLostError(Exception):
    """Say that another process does the job now."""


class Lease:
    """The right to do one job, until it is lost."""

    def __init__(self, name: str, epoch: int, *, store: JobLeaseStore, database: Database) -> None:
        self.name = name
        self.epoch = epoch
        self._store = store
        self._database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection inside of a transaction during which nobody else can take the job.

        Raises LeaseLostError if somebody else has it already.
        """
        async with self._database.transaction() as connection:
            if not await self._store.hold(connection, self.name, self.epoch):
                raise LeaseLostError(self.name)
            yield connection


Job = Callable[[Lease], Awaitable[None]]


class Leases:
    """Run jobs alone among all processes of a server. ``holder`` is this process's name.

    One that is not ``willing`` leaves jobs to the others, unless nobody takes them. That may change.
    """

    def __init__(
        self,
        *,
        database: Database,
        holder: str,
        clock: Clock,
        lease_ms: int = LEASE_MS,
        willing: bool = True,
    ) -> None:
        self._database = database
        self._store = JobLeaseStore(database)
        self._holder = holder
        self._clock = clock
        self._lease_ms = lease_ms
        self.willing = willing
        self._asking: asyncio.Task[frozenset[str]] | None = None

    def leave(self) -> None:
        """Leave jobs to the others, as one that is not willing does."""
        self.willing = False

    async def run_alone(self, name: str, job: Job) -> None:
        """Do a job whenever this process has the lease, for ever; it is cancelled when the lease is lost.

        A job that ends is done, and is not begun again.
        """
        while True:
            epoch = await self._take(name)
            if epoch is None:
                await asyncio.sleep(until_beat_s(self._lease_ms / 3000))
                continue
            if await self._do(Lease(name, epoch, store=self._store, database=self._database), job):
                return

    async def _take(self, name: str) -> int | None:
        try:
            if name in await self._held_by_others():
                return None
            if self.willing:
                return await self._store.take(name, self._holder, self._lease_ms)
            left_ms = self._lease_ms * _LEFT_LEASES
            return await self._store.take_left(name, self._holder, self._lease_ms, left_ms)
        except MatrixError:
            return None  # without a database nobody has it

    async def _held_by_others(self) -> frozenset[str]:
        """Give the jobs that others have: all who wait for one look at the same time, and ask once."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._store.held_by_others(self._holder))
            self._asking.add_done_callback(self._end_asking)
        return await asyncio.shield(self._asking)

    def _end_asking(self, asked: asyncio.Task[frozenset[str]]) -> None:
        self._asking = None
        if not asked.cancelled():
            asked.exception()  # nobody may be left to look at it

    async def _do(self, lease: Lease, job: Job) -> bool:
        """Do the job while the lease is kept; True if it came to its end."""
        logger.info("This process does %s now", lease.name)
        working = asyncio.ensure_future(job(lease))
        keeping = asyncio.ensure_future(self._keep(lease))
        try:
            await asyncio.wait([working, keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, keeping):
                task.cancel()
            await asyncio.gather(working, keeping, return_exceptions=True)
            await self._release(lease)
        if working.cancelled():
            logger.warning("This process does %s no more", lease.name)
            return False
        error = working.exception()
        if isinstance(error, LeaseLostError):
            return False
        if error is not None:
            raise error
        return True

    async def _keep(self, lease: Lease) -> None:
        """Renew the lease; return when it is lost, or may be, or is better left to others."""
        lease_s = self._lease_ms / 1000
        begun = renewed = self._clock.monotonic()
        was_willing = self.willing
        while self._clock.monotonic() - renewed < lease_s:
            if not self.willing and (was_willing or self._clock.monotonic() - begun > _STANDING_IN_S):
                return
            await asyncio.sleep(lease_s / 3)
            asked = self._clock.monotonic()
            try:
                if not await self._store.renew(lease.name, lease.epoch, self._lease_ms):
                    return
                renewed = asked
            except MatrixError as error:
                logger.debug("The lease for %s could not be renewed: %s", lease.name, error)

    async def _release(self, lease: Lease) -> None:
        try:
            await self._store.release(lease.name, lease.epoch)
        except MatrixError as error:
            logger.debug("The lease for %s could not be given back: %s", lease.name, error)
