"""`python -m bench.seed`: fill a Ranvier database with events, as if the server had run for long."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from bench.seed.plan import Plan, make_plan
from bench.seed.share import run_share
from ranvier.config.generate import SIGNING_KEY_NAME
from ranvier.processes.postgres import EmbeddedPostgres


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.seed", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--data", type=Path, help="data folder of a stopped server")
    place.add_argument("--dsn", help="a database that a Ranvier has been started on before")
    parser.add_argument("--signing-key", type=Path, help="default: the one in the data folder")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.signing_key is None:
        if arguments.data is None:
            parser.error("--dsn needs --signing-key")
        arguments.signing_key = arguments.data / SIGNING_KEY_NAME
    return arguments


async def seed(dsn: str, key_line: str, *, events: int, processes: int) -> Plan:
    """Write `events` events into the database of a server that is stopped, and give what was planned.

    Everything is as the server itself would have written it: the events are built, authorised and signed
    with its own code and key. Raises RuntimeError when it failed; what was there before is then untouched.
    """
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            # This holds the lock of the log until all is written.
            plan = await make_plan(connection, events)
            await asyncio.to_thread(_run_shares, dsn, key_line, plan, processes)
            now_ms = int(time.time() * 1000)
            accounts = [(user, now_ms) for user in plan.new_users]
            await connection.copy_records_to_table(
                "accounts", columns=["user_id", "created_ts"], records=accounts
            )
            await connection.execute("UPDATE log_head SET pos = pos + $1", events)
        # What autovacuum would do by and by must not be charged to what is measured next.
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    return plan


def _run_shares(dsn: str, key_line: str, plan: Plan, processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    shares = [
        context.Process(target=run_share, args=(dsn, key_line, plan, share, processes, barrier), daemon=True)
        for share in range(processes)
    ]
    for process in shares:
        process.start()
    for process in shares:
        process.join()
    if any(process.exitcode for process in shares):
        raise RuntimeError("seeding failed; the database is as it was before")


@asynccontextmanager
async def _dsn(arguments: argparse.Namespace) -> AsyncIterator[str]:
    if arguments.dsn is not None:
        yield arguments.dsn
        return
    postgres = EmbeddedPostgres(arguments.data)
    try:
        yield await postgres.start()
    finally:
        await postgres.stop()


async def _main(arguments: argparse.Namespace) -> None:
    begun = time.perf_counter()
    key_line = arguments.signing_key.read_text(encoding="ascii").strip().splitlines()[0]
    async with _dsn(arguments) as dsn:
        plan = await seed(dsn, key_line, events=arguments.events, processes=arguments.processes)
    seconds = time.perf_counter() - begun
    kept = sum(room.room_id is not None for room in plan.rooms)
    print(
        f"{plan.events} events at the positions {plan.before + 1} to {plan.before + plan.events}, in {kept} "
        f"rooms that were there and {len(plan.rooms) - kept} new ones, in {seconds:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    asyncio.run(_main(_arguments()))
