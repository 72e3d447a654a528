"""The name and the key that the server signs with."""

from __future__ import annotations

from pathlib import Path

from ranvier.config import Config
from ranvier.config.generate import signing_key_file
from ranvier.processes.start_error import LostKeyError, StartError
from ranvier.rooms.draft import Identity
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey
from ranvier.storage.database import Database
from ranvier.storage.first_key import may_make_key, no_key_was_made, note_key


async def make_first_key(config: Config, database: Database) -> None:
    """Make the signing key of a server that has said nothing yet; it needs its old one afterwards.

    Of several machines that start at once one makes it. Raises StartError, ``OSError``.
    """
    path = _key_path(config)
    if path.exists():
        await note_key(database)
        return
    if not await may_make_key(database):
        raise LostKeyError(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        signing_key_file(path).write()
    except OSError:
        await no_key_was_made(database)
        raise


def identity_of(config: Config) -> Identity:
    """Read the key that is configured. Raises StartError, ``OSError``."""
    path = _key_path(config)
    try:
        line = path.read_text(encoding="ascii").strip().partition("\n")[0]
        return Identity(config.server.server_name, SigningKey.parse(line))
    except (MatrixError, ValueError) as error:
        raise StartError(f"the signing key {path} cannot be used, restore it from a copy: {error}") from error


def _key_path(config: Config) -> Path:
    path = config.keys.signing_key_path
    assert path is not None, "the command line names one where none is configured"
    return path
