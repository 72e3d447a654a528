"""Whether the server has its signing key, which it keeps for good."""

from __future__ import annotations

from typing import Final

from ranvier.storage.database import Database

_NOTE: Final = "UPDATE server SET has_key = true WHERE NOT has_key"
_CLAIM: Final = f"{_NOTE} AND (SELECT pos FROM log_head) = 0 RETURNING true"
_LET_GO: Final = "UPDATE server SET has_key = false"


async def note_key(database: Database) -> None:
    """Know that there is one."""
    await database.execute(_NOTE)


async def may_make_key(database: Database) -> bool:
    """Tell whether the caller is the first of a server that has said nothing yet; nobody else is then."""
    return bool(await database.fetchval(_CLAIM))


async def no_key_was_made(database: Database) -> None:
    """Leave it to the next one."""
    await database.execute(_LET_GO)
