"""The table ``job_leases``: who does what only one process may do at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ranvier.storage.database import Connection, Database

Transactions = Callable[[], AbstractAsyncContextManager[Connection]]
"""Begins a transaction that is refused once another process has the job."""

# Asked again and again by those who do not get it: what only looks writes nothing.
_TAKE = """
INSERT INTO job_leases AS l (name, holder, epoch, until)
SELECT $1, $2, 1, clock_timestamp() + $3 * interval '1 millisecond'
WHERE NOT EXISTS (SELECT FROM job_leases WHERE name = $1 AND holder <> $2 AND until >= clock_timestamp())
ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, epoch = l.epoch + 1, until = excluded.until
    WHERE l.until < clock_timestamp() OR l.holder = excluded.holder
RETURNING epoch
"""
# Epoch 0 only notes since when nobody has it.
_TAKE_LEFT = """
INSERT INTO job_leases AS l (name, holder, epoch, until) SELECT $1, $2, 0, clock_timestamp()
WHERE NOT EXISTS (
    SELECT FROM job_leases WHERE name = $1 AND until >= clock_timestamp() - $4 * interval '1 millisecond'
)
ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, epoch = l.epoch + 1,
        until = clock_timestamp() + $3 * interval '1 millisecond'
    WHERE l.until < clock_timestamp() - $4 * interval '1 millisecond'
RETURNING epoch
"""
_HELD = "SELECT name FROM job_leases WHERE until >= clock_timestamp() AND holder <> $1"
_RENEW = """
UPDATE job_leases SET until = clock_timestamp() + $3 * interval '1 millisecond'
WHERE name = $1 AND epoch = $2
"""
_RELEASE = "UPDATE job_leases SET until = clock_timestamp() WHERE name = $1 AND epoch = $2"
# Whoever takes the lease must wait for this lock: nobody else's epoch begins before this transaction ends.
_HOLD = "SELECT true FROM job_leases WHERE name = $1 AND epoch = $2 FOR SHARE"


class JobLeaseStore:
    """Take, renew and give back leases. The database's clock alone decides."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, name: str, holder: str, lease_ms: int) -> int | None:
        """Take a lease that is free, or one's own anew, and give its epoch; None if somebody else has it."""
        epoch: int | None = await self._database.fetchval(_TAKE, name, holder, lease_ms)
        return epoch

    async def take_left(self, name: str, holder: str, lease_ms: int, left_ms: int) -> int | None:
        """Take a lease that nobody had for ``left_ms``, and give its epoch; None if it is not so."""
        epoch: int = await self._database.fetchval(_TAKE_LEFT, name, holder, lease_ms, left_ms) or 0
        return epoch or None

    async def held_by_others(self, holder: str) -> frozenset[str]:
        """Give the names of all leases that others have."""
        return frozenset(record["name"] for record in await self._database.fetch(_HELD, holder))

    async def renew(self, name: str, epoch: int, lease_ms: int) -> bool:
        """Keep a lease; False if somebody else has taken it."""
        return await self._database.execute(_RENEW, name, epoch, lease_ms) > 0

    async def release(self, name: str, epoch: int) -> None:
        """Let others have a lease at once; nothing happens if somebody else has it already."""
        await self._database.execute(_RELEASE, name, epoch)

    async def hold(self, connection: Connection, name: str, epoch: int) -> bool:
        """Keep a lease until the transaction of ``connection`` ends; False if somebody else has it."""
        return bool(await connection.fetchval(_HOLD, name, epoch))
