"""A database that another program uses is told from one that is empty."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ranvier.config import load
from ranvier.processes.prepare_database import prepare_database
from ranvier.processes.start_error import StartError
from ranvier.storage.database import Database
from tests.postgres import fresh_database
from tests.server.administrator import database_settings

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY relname"


async def test_the_database_of_another_program_is_refused_and_left_as_it_is(
    postgres: str, tmp_path: Path
) -> None:
    """Who starts with another server's configuration would read `relation "rooms" already exists`."""
    async with fresh_database(postgres) as dsn:
        path = tmp_path / "homeserver.yaml"
        path.write_text(yaml.dump({"server_name": "example.org", "database": database_settings(dsn)}))
        config, database = load([path]), Database({"dsn": dsn}, size=1)
        try:
            await database.execute("CREATE TABLE rooms (room_id text)")
            with pytest.raises(StartError, match=r"has the table rooms.* give the server an empty one"):
                await prepare_database(database, config)
            assert [row["relname"] for row in await database.fetch(TABLES)] == ["rooms"]
            await database.execute("DROP TABLE rooms")
            for _ in range(2):  # an empty one is taken, and known again
                await prepare_database(database, config)
        finally:
            await database.close()
