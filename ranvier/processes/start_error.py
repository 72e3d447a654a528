"""Why a server does not start, for its administrator. Kept apart so that the command line starts fast."""

from __future__ import annotations


class StartError(Exception):
    """Say why the server cannot start and what to do about it."""
