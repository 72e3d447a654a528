"""The tokens that clients carry: ``s123_7`` is log position 123 and ephemeral position 7."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from ranvier.spec.errors import invalid_param

_TOKEN: Final = re.compile(r"s(-?\d{1,18})(?:_(\d{1,18})(?:-([0-9a-z]{1,16}))?)?")


class Token(NamedTuple):
    """A point between two rows of the log: after ``pos``, before ``pos`` + 1.

    ``ephemeral`` counts typing and presence changes within ``epoch``; both are 0 and empty in
    tokens that only page through a room.
    """

    pos: int
    ephemeral: int = 0
    epoch: str = ""

    def __str__(self) -> str:
        if not self.ephemeral and not self.epoch:
            return f"s{self.pos}"
        return f"s{self.pos}_{self.ephemeral}-{self.epoch}"

    def counting_from(self, since: Token | None) -> Token:
        """Give this token with the count of ``since`` if that is further on: another process knew more."""
        if since is None or since.ephemeral <= self.ephemeral or since.epoch != self.epoch:
            return self
        return self._replace(ephemeral=since.ephemeral)


@lru_cache(maxsize=256)  # those who wait for the same news come with the same token
def parse_token(text: str, name: str = "since") -> Token:
    """Read a token, or raise 400 ``M_INVALID_PARAM``."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise invalid_param(f"{name} is not a token of this server")
    return Token(int(match[1]), int(match[2] or 0), match[3] or "")
