"""Why a server does not start, for its administrator. Kept apart so that the command line starts fast."""

from __future__ import annotations

from pathlib import Path


class StartError(Exception):
    """Say why the server cannot start and what to do about it."""


class LostKeyError(StartError):
    """Say that the signing key is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"there is no signing key {path}: bring it back from a copy, nobody trusts a new one (a server "
            "that never ran takes the signing.key that `ranvier generate-config` writes)"
        )
