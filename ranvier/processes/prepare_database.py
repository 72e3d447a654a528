"""Make a database ready for this server, or say in a sentence why it cannot be used."""

from __future__ import annotations

import asyncpg

from ranvier.config import Config
from ranvier.processes.start_error import StartError
from ranvier.storage.database import Database, DatabaseUnavailable, what_failed
from ranvier.storage.migrations import ForeignDatabase, WrongServerName, migrate


async def prepare_database(database: Database, config: Config) -> None:
    """Bring the schema up to date. Raises ``StartError`` when the database cannot be used."""
    try:
        await migrate(database, config.server.server_name)
    except WrongServerName as error:
        raise StartError(
            f"{error}; a server's name cannot be changed: correct server_name in the configuration, "
            "or start with another database or data folder"
        ) from error
    except ForeignDatabase as error:
        raise StartError(
            f"{_described(config)} is another program's ({error}): give the server an empty one"
        ) from error
    except DatabaseUnavailable as error:
        why = what_failed(error.__cause__ or error)
        raise StartError(f"cannot reach {_described(config)}: {why}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartError(f"cannot use {_described(config)}: {error}") from error


def _described(config: Config) -> str:
    if config.database is None:
        return "the embedded PostgreSQL"
    at = config.database
    return f"the database {at.dbname} of PostgreSQL at {at.host} port {at.port} as user {at.user}"
