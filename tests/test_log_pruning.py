"""Old rows of the log go when nobody needs them any more."""

from __future__ import annotations

import asyncio

import pytest

from ranvier.cluster.leases import Lease, LeaseLostError
from ranvier.log import pruning
from ranvier.log.bus import LocalBus
from ranvier.log.follow import Follower
from ranvier.log.pruning import LogPruning
from ranvier.log.tail import Tail
from ranvier.storage.job_leases import JobLeaseStore
from ranvier.storage.log import LogPruned
from ranvier.storage.transactions import TransactionStore
from ranvier.wire.log_rows import LogRow
from tests.core import Core, running_core

ALICE = "@alice:example.org"
_AGE = "UPDATE log_marks SET ts = ts - $1 * interval '1 second'"


async def write_data(core: Core, count: int) -> int:
    """Write account data, and give the position of the last."""
    rows = [LogRow(kind="account_data", user_id=ALICE, key=f"t{n}", body=b"{}") for n in range(count)]
    return await core.appender.append_rows(rows)


async def positions(core: Core) -> list[int]:
    """Give the positions of the rows that are left."""
    return [record["pos"] for record in await core.database.fetch("SELECT pos FROM log ORDER BY pos")]


@pytest.fixture(autouse=True)
def no_row_is_kept_for_being_among_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few rows do."""
    monkeypatch.setattr(pruning, "LOG_KEPT_ROWS", 0)


def pruning_of(core: Core) -> LogPruning:
    return LogPruning(database=core.database, transactions=TransactionStore(core.database))


async def test_rows_go_when_they_are_old_and_not_before(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would fill with all receipts and messages of years; or a worker that lags would lose some."""
    monkeypatch.setattr(pruning, "_PAUSE_S", 0)
    async with running_core(database) as core:
        job, begin = pruning_of(core), core.database.transaction
        await job.sweep(begin)
        old = await write_data(core, 1203)
        await job.sweep(begin)
        newer = await write_data(core, 4)
        assert len(await positions(core)) == 1207
        await core.database.execute(_AGE, pruning.LOG_KEPT_S - 60)
        await job.sweep(begin)
        assert len(await positions(core)) == 1207
        await core.database.execute(_AGE, 120)
        await job.sweep(begin)
        left = await positions(core)
        assert left == list(range(old + 1, newer + 1))
        assert await core.database.fetchval("SELECT count(*) FROM account_data") == 1203
        await job.sweep(begin)
        assert await positions(core) == left
        assert await core.database.fetchval("SELECT count(*) FROM log_marks WHERE pos < $1", old) == 0


async def test_the_last_rows_are_kept_however_old_they_are(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of a quiet server everybody would be answered from the database, not from memory."""
    monkeypatch.setattr(pruning, "LOG_KEPT_ROWS", 8)
    async with running_core(database) as core:
        newest = await write_data(core, 20)
        await pruning_of(core).sweep(core.database.transaction)
        await core.database.execute(_AGE, pruning.LOG_KEPT_S + 60)
        await pruning_of(core).sweep(core.database.transaction)
        assert await positions(core) == list(range(newest - 7, newest + 1))


async def test_an_index_that_was_broken_off_is_built_anew(database: str) -> None:
    """Old transaction ids would be looked for in the whole table each hour."""
    async with running_core(database) as core:
        is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'transactions_by_age'::regclass"
        await pruning_of(core).sweep(core.database.transaction)
        await core.database.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'transactions_by_age'::regclass"
        )
        assert not await core.database.fetchval(is_valid)
        await pruning_of(core).sweep(core.database.transaction)
        assert await core.database.fetchval(is_valid)


async def test_transaction_ids_are_kept_for_as_long_as_clients_try_again(database: str) -> None:
    """The table of sent messages would grow for ever; or a message sent again would be there twice."""
    async with running_core(database) as core:
        now_ms = await core.database.fetchval("SELECT (extract(epoch FROM now()) * 1000)::bigint")
        for age_s in (0, pruning.TRANSACTIONS_KEPT_S - 60, pruning.TRANSACTIONS_KEPT_S + 60):
            for number in range(2):
                await core.database.execute(
                    "INSERT INTO transactions VALUES ($1, 'D', 'send', $2, '$e', $3)",
                    *(ALICE, f"{age_s}-{number}", now_ms - age_s * 1000),
                )
        await pruning_of(core).sweep(core.database.transaction)
        assert await core.database.fetchval("SELECT count(*) FROM transactions") == 4
        oldest = await core.database.fetchval("SELECT min(sent_ts) FROM transactions")
        assert oldest == now_ms - (pruning.TRANSACTIONS_KEPT_S - 60) * 1000


async def test_a_process_begins_after_what_was_removed(database: str) -> None:
    """After a restart clients would be answered from a memory that lacks what was removed."""
    async with running_core(database) as core:
        old = await write_data(core, 20)
        await pruning_of(core).sweep(core.database.transaction)
        await core.database.execute(_AGE, pruning.LOG_KEPT_S + 60)
        newer = await write_data(core, 3)
        await pruning_of(core).sweep(core.database.transaction)
        tail = Tail()
        await Follower(database=core.database, bus=LocalBus(), tail=tail).start()
        assert (tail.start, tail.pos, len(tail)) == (old, newer, 3)


async def test_a_process_that_missed_what_was_removed_ends(database: str) -> None:
    """A worker that stood still for days would go on with what it knew then, and show it for ever."""
    async with running_core(database) as core:
        tail = Tail()
        late = Follower(database=core.database, bus=LocalBus(), tail=tail, heartbeat_s=0.02)
        await late.start()
        await write_data(core, 20)
        await pruning_of(core).sweep(core.database.transaction)
        await core.database.execute(_AGE, pruning.LOG_KEPT_S + 60)
        await write_data(core, 3)
        await pruning_of(core).sweep(core.database.transaction)
        with pytest.raises(LogPruned):
            await asyncio.wait_for(late.run(), 30)


async def test_who_has_lost_the_job_removes_nothing(database: str) -> None:
    """A process that stood still and one that took over would remove at once, each by what it found."""
    async with running_core(database) as core:
        store = JobLeaseStore(core.database)
        epoch = await store.take("old rows of the log", "one", 1)
        assert epoch is not None
        await asyncio.sleep(0.05)
        assert await store.take("old rows of the log", "two", 60_000)
        lease = Lease("old rows of the log", epoch, store=store, database=core.database)
        with pytest.raises(LeaseLostError):
            await pruning_of(core).sweep(lease.transaction)
