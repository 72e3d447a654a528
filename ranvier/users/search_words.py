"""Words by which people are found: without case and accents, in any script."""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_TEXT: Final = 300
"""Characters of a name that are looked at."""
MAX_WORDS: Final = 64
MAX_WORD: Final = 64
_MAX_ASKED: Final = 8


def fold(text: str) -> list[str]:
    """Give the words of a text as they are compared.

    "The search is performed case-insensitively on user IDs and display names": accents count as little as
    case does. Source: client-server API, ``POST /user_directory/search``.
    """
    folded = unicodedata.normalize("NFKD", text[:MAX_TEXT].casefold())
    kept = [char for char in folded if unicodedata.category(char) != "Mn"]
    parts = "".join(char if char.isalnum() or unicodedata.category(char) == "Mc" else " " for char in kept)
    return [part[:MAX_WORD] for part in parts.split()]


def words_of(*texts: str) -> list[str]:
    """Give the words under which somebody is found, each once.

    Scripts that write no spaces between words (and others whose letters have no case: it does no harm) can
    be found from each letter on.
    """
    words: dict[str, None] = {}
    for word in (word for text in texts for word in fold(text)):
        words[word] = None
        for start in range(1, len(word)):
            if unicodedata.category(word[start]) == "Lo":
                words[word[start:]] = None
    return list(words)[:MAX_WORDS]


def query_of(term: str) -> str:
    """Make a PostgreSQL tsquery of what somebody types: all words, each as a beginning; empty for none."""
    return " & ".join(f"'{word}':*" for word in fold(term)[:_MAX_ASKED])
