"""Connections to PostgreSQL: how many there are, who gets the next one, and what becomes of lost ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from ranvier.storage import database as module
from ranvier.storage.database import Connection, Database, DatabaseUnavailable, KeptConnection
from tests.core import running_core

_PID = "SELECT pg_backend_pid()"


@asynccontextmanager
async def connected(dsn: str, size: int, **arguments: str) -> AsyncIterator[Database]:
    database = Database({"dsn": dsn, **arguments}, size=size)
    try:
        async with asyncio.timeout(30):
            yield database
    finally:
        await database.close()


async def end(other: Database, pid: int) -> None:
    """Have PostgreSQL end a connection."""
    assert await other.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)


async def test_who_comes_at_once_shares_few_connections(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that takes over a thousand rooms would open all its connections first, and stall meanwhile."""
    monkeypatch.setattr(module, "_APART_S", 60)
    async with connected(database, 10) as lent:
        assert await asyncio.gather(*(lent.fetchval("SELECT 1") for _ in range(200))) == [1] * 200
        assert (lent.used, lent.idle) == (0, 3)


async def test_whoever_waits_for_others_that_take_long_gets_a_connection(database: str) -> None:
    """A few long reads would have all requests wait until they are done."""
    async with connected(database, 6) as lent, AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(lent.connection())
        assert (lent.used, lent.idle) == (6, 0)
        seventh = asyncio.create_task(lent.fetchval("SELECT 7"))
        await asyncio.sleep(0.1)
        assert not seventh.done()
        await stack.aclose()
        assert await seventh == 7
        assert (lent.used, lent.idle) == (0, 6)


async def test_whoever_leaves_the_line_takes_no_connection_along(database: str) -> None:
    """Clients that go away while the database is busy would leave the server without connections."""
    async with connected(database, 1) as lent:
        for comes_first in (False, True):
            connection = await lent.take()
            leaving = asyncio.create_task(lent.fetchval("SELECT 1"))
            staying = asyncio.create_task(lent.fetchval("SELECT 2"))
            await asyncio.sleep(0.05)
            if comes_first:
                leaving.cancel()
            lent.give_back(connection, 0.0)
            leaving.cancel()
            assert await staying == 2
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert (lent.used, lent.idle) == (0, 1)


async def test_a_connection_that_is_lost_makes_room_for_another(database: str) -> None:
    """After PostgreSQL ended a connection whoever waits would wait for ever."""
    async with connected(database, 1) as lent, connected(database, 1) as other:
        held = await lent.take()
        pid = held.get_server_pid()
        waiting = asyncio.create_task(lent.fetchval(_PID))
        await asyncio.sleep(0.05)
        await end(other, pid)
        with pytest.raises(DatabaseUnavailable):
            async with _giving_back(lent, held):
                await held.fetchval("SELECT 1")
        assert await waiting != pid


@asynccontextmanager
async def _giving_back(lent: Database, connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    except Exception as error:
        connection.terminate()
        raise DatabaseUnavailable from error
    finally:
        lent.give_back(connection, 0.0)


async def test_all_who_wait_are_told_that_it_is_not_there(tmp_path: Path) -> None:
    """While PostgreSQL is away each request would wait for the attempts of all those before it."""
    async with connected(f"postgresql:///none?host={tmp_path}", 3) as lent:
        found = await asyncio.gather(*(lent.fetchval("SELECT 1") for _ in range(50)), return_exceptions=True)
        assert {type(it) for it in found} == {DatabaseUnavailable}
        assert (lent.used, lent.idle, lent.reachable) == (0, 0, False)


async def test_whoever_is_refused_another_connection_waits_for_one_that_is_there(database: str) -> None:
    """At PostgreSQL's limit, or the role's, each burst of requests would be answered 503."""
    async with connected(database, 1) as other:
        await other.execute("CREATE ROLE limited LOGIN CONNECTION LIMIT 3")
        try:
            async with connected(database, 10, user="limited") as lent:

                async def use() -> None:
                    async with lent.connection() as connection:
                        await connection.execute("SELECT pg_sleep(0.02)")

                kept = KeptConnection(lent)
                await _pid(kept)
                await asyncio.gather(*(use() for _ in range(40)))
                assert (lent.used, lent.idle, lent.reachable) == (1, 2, True)
                await asyncio.gather(*(lent.fetchval("SELECT 1") for _ in range(40)))
                kept.give_back()
        finally:
            await other.execute("DROP ROLE limited")


async def test_where_none_at_all_is_left_whoever_waits_is_told(database: str) -> None:
    """Requests would wait for ever for the one connection that is kept for commits."""
    async with connected(database, 1) as other:
        await other.execute("CREATE ROLE limited LOGIN CONNECTION LIMIT 1")
        try:
            async with connected(database, 10, user="limited") as lent:
                kept = KeptConnection(lent)
                await _pid(kept)
                found = await asyncio.gather(
                    *(lent.fetchval("SELECT 1") for _ in range(20)), return_exceptions=True
                )
                assert {type(it) for it in found} <= {DatabaseUnavailable, module._NoneLeft}
                kept.give_back()
                assert await lent.fetchval("SELECT 1") == 1
        finally:
            await other.execute("DROP ROLE limited")


async def test_a_kept_connection_is_the_same_until_it_is_lost(database: str) -> None:
    """Every commit would wait, now and then, until a connection has learnt how to write to the log."""
    async with connected(database, 2) as lent, connected(database, 1) as other:
        kept = KeptConnection(lent)
        pids = []
        for _ in range(3):
            pids.append(await _pid(kept))
            assert await lent.fetchval(_PID) != pids[0]
        assert pids == pids[:1] * 3
        await end(other, pids[0])
        with suppress(DatabaseUnavailable):  # unless the news of its end was faster
            await _pid(kept)
        assert await _pid(kept) != pids[0]
        kept.give_back()
        assert lent.used == 0


async def _pid(kept: KeptConnection) -> int:
    async with kept as connection:
        pid: int = await connection.fetchval(_PID)
        return pid


async def test_whoever_commits_has_a_connection_that_is_ready(database: str) -> None:
    """The first message after a start, and some later ones, would take a tenth of a second more."""
    async with running_core(database, size=2) as core, asyncio.timeout(30):
        while core.database.used != 1:
            await asyncio.sleep(0.01)
        assert await core.database.fetchval("SELECT 1") == 1
        assert (core.database.used, core.database.idle) == (1, 1)
