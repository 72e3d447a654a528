"""Jobs that must run once, with several processes' worth of leases on one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ranvier.cluster.leases import Lease, LeaseLostError, Leases
from ranvier.log.clock import SystemClock
from ranvier.storage.database import Database


@pytest.fixture
async def connections(database: str) -> AsyncIterator[Database]:
    """Give connections to a database with the schema."""
    made = Database({"dsn": database}, size=8)
    yield made
    await made.close()


def leases_of(database: Database, holder: str, lease_ms: int = 600) -> Leases:
    """Make the leases of one process."""
    return Leases(database=database, holder=holder, clock=SystemClock(), lease_ms=lease_ms)


async def test_only_one_process_does_a_job(connections: Database) -> None:
    """Two workers would do the same clean-up at once."""
    at_work: set[str] = set()
    most = 0
    begun = asyncio.Event()

    async def work(lease: Lease) -> None:
        nonlocal most
        at_work.add(lease.name + str(lease.epoch))
        most = max(most, len(at_work))
        begun.set()
        try:
            await asyncio.sleep(0.2)
        finally:
            at_work.discard(lease.name + str(lease.epoch))

    processes = [leases_of(connections, f"worker{number}").run_alone("sweep", work) for number in range(4)]
    async with asyncio.timeout(20):
        await asyncio.gather(*processes)
    assert most == 1


async def test_a_job_goes_on_elsewhere_when_its_process_stops(connections: Database) -> None:
    """After a worker was stopped, nobody would do its jobs."""
    began: asyncio.Queue[str] = asyncio.Queue()

    async def work_of(name: str, lease: Lease) -> None:
        began.put_nowait(name)
        await asyncio.Event().wait()

    tasks = {
        name: asyncio.create_task(
            leases_of(connections, name).run_alone("sweep", lambda lease, name=name: work_of(name, lease))  # type: ignore[misc]
        )
        for name in ("one", "two")
    }
    async with asyncio.timeout(10):
        first = await began.get()
        tasks.pop(first).cancel()
        (second, other) = next(iter(tasks.items()))
        assert await began.get() == second
        other.cancel()


async def test_who_is_not_there_for_jobs_does_them_only_if_nobody_else_does(connections: Database) -> None:
    """A worker for clients alone would do the server's clean-up; or nobody would, on a server of such."""
    began: asyncio.Queue[str] = asyncio.Queue()
    processes = {
        name: Leases(
            database=connections, holder=name, clock=SystemClock(), lease_ms=300, willing=name == "willing"
        )
        for name in ("unwilling", "willing")
    }

    def start(name: str) -> asyncio.Task[None]:
        async def work(lease: Lease) -> None:
            began.put_nowait(name)
            await asyncio.Event().wait()

        return asyncio.create_task(processes[name].run_alone("sweep", work))

    async with asyncio.timeout(20):
        unwilling = start("unwilling")
        await asyncio.sleep(0.2)
        willing = start("willing")
        assert await began.get() == "willing"
        processes["willing"].willing = False  # as after a SIGHUP; for as long as one has nothing better
        processes["unwilling"].willing = True
        assert await began.get() == "unwilling"
        unwilling.cancel()
        assert await began.get() == "willing"
        willing.cancel()


async def test_a_database_that_is_read_only_for_a_while_ends_no_process(
    database: str, connections: Database
) -> None:
    """All workers would end, one after the other, when a standby takes over that still lets nobody write."""
    began: asyncio.Queue[None] = asyncio.Queue()
    ended = asyncio.Event()

    async def work(lease: Lease) -> None:
        began.put_nowait(None)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    admin = await asyncpg.connect(database)
    name = await admin.fetchval("SELECT current_database()")
    working = asyncio.create_task(leases_of(connections, "one").run_alone("sweep", work))
    async with asyncio.timeout(20):
        await began.get()
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await ended.wait()  # the lease could not be renewed
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await began.get()
    working.cancel()
    await admin.close()


async def test_what_a_late_holder_writes_is_refused(connections: Database) -> None:
    """A worker that was frozen would go on with a job that another one has taken over."""
    slow = leases_of(connections, "slow", lease_ms=100)
    held: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    async def stand_still(lease: Lease) -> None:
        async with lease.transaction() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        held.set_result(lease)
        await asyncio.Event().wait()

    task = asyncio.create_task(slow.run_alone("sweep", stand_still))
    lease = await held
    # As if the process stood still: nothing is renewed, and nobody is told.
    await connections.execute("UPDATE job_leases SET until = '-infinity'")
    taken: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    async def take_over(lease: Lease) -> None:
        taken.set_result(lease)
        await asyncio.Event().wait()

    task.cancel()
    other = asyncio.create_task(leases_of(connections, "quick", lease_ms=5000).run_alone("sweep", take_over))
    async with asyncio.timeout(10):
        later = await taken
    assert later.epoch > lease.epoch
    with pytest.raises(LeaseLostError):
        async with lease.transaction():
            raise AssertionError("the late holder was let in")
    async with later.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    other.cancel()
