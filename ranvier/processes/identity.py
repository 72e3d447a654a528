"""The name and the key that the server signs with."""

from __future__ import annotations

from ranvier.config import Config
from ranvier.rooms.draft import Identity
from ranvier.spec.signatures import SigningKey


def identity_of(config: Config) -> Identity:
    """Read the key that is configured."""
    path = config.keys.signing_key_path
    assert path is not None, "the command line makes a signing key where none is configured"
    line = path.read_text(encoding="ascii").strip().splitlines()[0]
    return Identity(config.server.server_name, SigningKey.parse(line))
