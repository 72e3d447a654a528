"""One large room, written into the database of a stopped server."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from bench.seed.plan import Plan, PlannedRoom
from bench.seed.share import run_share
from ranvier.config.generate import SIGNING_KEY_NAME
from ranvier.processes.postgres import EmbeddedPostgres

_NEWEST_ROOM = "SELECT room_id FROM rooms ORDER BY room_nid DESC LIMIT 1"


async def seed_large_room(data: Path, known: Sequence[str], members: int, events: int) -> str:
    """Write a room of so many members with so many events besides, and give its id.

    `data` is the data folder; the users who are `known` join first, the first of them makes the room, and the
    others are new accounts. All is as the server itself would have written it. Raises RuntimeError.
    """
    postgres = EmbeddedPostgres(data)
    dsn = await postgres.start()
    try:
        connection = await asyncpg.connect(dsn)
        try:
            key_line = (data / SIGNING_KEY_NAME).read_text(encoding="ascii").splitlines()[0]
            async with connection.transaction():
                await _write(connection, dsn, key_line, known, members, events)
            await connection.execute("VACUUM (ANALYZE)")
            room_id: str = await connection.fetchval(_NEWEST_ROOM)
            return room_id
        finally:
            await connection.close()
    finally:
        await postgres.stop()


async def _write(
    connection: asyncpg.Connection, dsn: str, key_line: str, known: Sequence[str], members: int, events: int
) -> None:
    name = await connection.fetchval("SELECT server_name FROM server")
    before = await connection.fetchval("SELECT pos FROM log_head FOR UPDATE")
    new = tuple(f"@member{number}:{name}" for number in range(members - len(known)))
    room = PlannedRoom(1, None, (*known, *new), 1.0)
    plan = Plan(name, before, members + events, (room,), new)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(1)
    process = context.Process(target=run_share, args=(dsn, key_line, plan, 0, 1, barrier))
    process.start()
    await asyncio.to_thread(process.join)
    if process.exitcode:
        raise RuntimeError("seeding failed")
    now_ms = int(time.time() * 1000)
    await connection.copy_records_to_table(
        "accounts", columns=["user_id", "created_ts"], records=[(user, now_ms) for user in new]
    )
    await connection.execute("UPDATE log_head SET pos = pos + $1", plan.events)
