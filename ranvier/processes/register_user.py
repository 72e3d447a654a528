"""Make an account from the command line, whether the server runs or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ranvier.config import Config
from ranvier.log.clock import SystemClock
from ranvier.processes.embedded import FolderInUse
from ranvier.processes.postgres import EmbeddedPostgres, PostgresError, running_dsn
from ranvier.processes.prepare_database import prepare_database
from ranvier.spec.errors import MatrixError
from ranvier.storage.accounts import AccountStore, NameTaken, NewAccount
from ranvier.storage.database import Database
from ranvier.users.passwords import Passwords, check_new_password
from ranvier.users.registration import wished_localpart

_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.1


def register_user(config: Config, data_dir: Path, name: str, password: str, admin: bool) -> None:
    """Make an account; the embedded PostgreSQL is started for it if it does not run.

    Raises ``MatrixError`` for a name or password that can not be used; ``PostgresError``, ``StartError``
    and ``OSError`` for a database that can not.
    """
    asyncio.run(_register(config, data_dir, name, password, admin))


async def _register(config: Config, data_dir: Path, name: str, password: str, admin: bool) -> None:
    server_name = config.server.server_name
    localpart = wished_localpart(name, server_name)
    check_new_password(config.passwords.policy, password)
    passwords = Passwords(config.passwords, threads=1)
    try:
        new = NewAccount(
            user_id=f"@{localpart}:{server_name}",
            password_hash=await passwords.hash(password),
            created_ts=SystemClock().now_ms(),
            is_admin=admin,
            display_name=localpart,
            # The server does it, when it looks for such users or starts.
            auto_join=bool(config.registration.auto_join.rooms),
        )
    finally:
        passwords.close()
    async with _dsn(config, data_dir) as dsn:
        database = Database({"dsn": dsn}, size=1)
        try:
            await prepare_database(database, config)
            await AccountStore(database).create(new)
        except NameTaken:
            raise MatrixError("M_USER_IN_USE", 400, f"There is a user {new.user_id} already") from None
        finally:
            await database.close()


@asynccontextmanager
async def _dsn(config: Config, data_dir: Path) -> AsyncIterator[str]:
    """Give the database of the server, run for the moment if nobody else runs it."""
    if config.database is not None:
        yield config.database.dsn()
        return
    postgres = EmbeddedPostgres(data_dir)
    try:
        yield await _running_or_started(postgres, data_dir)
    finally:
        await postgres.stop()


async def _running_or_started(postgres: EmbeddedPostgres, data_dir: Path) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        running = running_dsn(data_dir)
        if running is not None:
            return running
        try:
            return await postgres.start()
        except PostgresError as error:
            # In use and not ready: the server is just starting or stopping.
            if not isinstance(error.__cause__, FolderInUse) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK_AGAIN_S)
