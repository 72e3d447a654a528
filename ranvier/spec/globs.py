"""Glob patterns, matched in time linear in the value: a pattern made by a stranger cannot stall us.

``*`` stands for any run of characters, ``?`` for exactly one. Everything between two ``*`` is
searched leftmost and then kept (an atomic group), which is enough because an earlier place only
leaves more room for what follows; so there is no backtracking over the ``*``.

Source: appendices, "Glob-style matching"; client-server API, "Push rules" (word boundaries).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Protocol

MAX_PATTERN: Final = 512
"""Characters of the longest pattern that is compiled at all."""
MAX_PATTERN_WITH_JOKER: Final = 64
"""Characters of the longest pattern with ``?``: its cost is its length times the value's."""
MAX_SEARCHED: Final = 4096
"""Characters of a value that a regular expression looks at."""

# "any character not in the sets [A-Z], [a-z], [0-9] or _": ASCII alone makes words
_STARTS = r"(?:(?<![A-Za-z0-9_])|(?![A-Za-z0-9_]))"
_ENDS = r"(?:(?![A-Za-z0-9_])|(?<![A-Za-z0-9_]))"
_WORD = re.compile(r"[a-z0-9_]+")


def fold(text: str) -> str:
    """Give ``text`` in the form in which case does not matter ("defined by the homeserver")."""
    # lower() and not casefold(): "?" has to match one character, and casefold makes "ß" two. The
    # final sigma is the one letter whose lower case depends on what follows.
    return text.lower().replace("ς", "σ")


def has_wildcard(pattern: str) -> bool:
    """Say whether the pattern is more than a literal."""
    return "*" in pattern or "?" in pattern


def is_too_costly(pattern: str) -> bool:
    """Say whether the pattern passes the limits, so that no value will ever match it."""
    return len(pattern) > (MAX_PATTERN_WITH_JOKER if "?" in pattern else MAX_PATTERN)


def is_word(folded: str) -> bool:
    """Say whether the folded text is one word, so that it can be looked up among words."""
    return _WORD.fullmatch(folded) is not None


def words_of(folded: str) -> frozenset[str]:
    """Give all the words of a folded text, as word boundaries divide it."""
    return frozenset(_WORD.findall(folded))


class Glob(Protocol):
    """Match values against one pattern; made by ``whole_glob`` and ``word_glob``."""

    def matches(self, value: str) -> bool:
        """Say whether the value matches; case counts (``fold`` both sides if it should not)."""
        ...


class _StarGlob:
    """A whole-value pattern without ``?``: plain searches, one after the other."""

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, segments: list[str]) -> None:
        self._first, *middle, self._last = segments
        self._middle = tuple(filter(None, middle))

    def matches(self, value: str) -> bool:
        position, end = len(self._first), len(value) - len(self._last)
        if position > end or not value.startswith(self._first) or not value.endswith(self._last):
            return False
        for segment in self._middle:
            found = value.find(segment, position, end)
            if found < 0:
                return False
            position = found + len(segment)
        return True


class _RegexGlob:
    """Any other pattern, on a bounded part of the value.

    NOTSPEC: of a value longer than ``MAX_SEARCHED`` a word glob sees only the start, and a
    whole-value glob with ``?`` never matches it.
    """

    __slots__ = ("_needle", "_regex", "_truncates")

    def __init__(self, regex: re.Pattern[str], needle: str, *, truncates: bool) -> None:
        self._regex = regex
        self._needle = needle
        self._truncates = truncates

    def matches(self, value: str) -> bool:
        if self._needle not in value:
            return False
        if len(value) > MAX_SEARCHED:
            if not self._truncates:
                return False
            value = value[:MAX_SEARCHED]
        return self._regex.match(value) is not None


class _Literal:
    """A whole-value pattern without wildcards."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def matches(self, value: str) -> bool:
        return value == self._text


@lru_cache(maxsize=4096)
def whole_glob(pattern: str, *, joker: bool = True) -> Glob:
    """Compile a pattern that must match the entire value; with ``joker`` false ``?`` is a literal.

    The caller has seen that the pattern is within the limits (``is_too_costly``).
    """
    segments = pattern.split("*")
    if not joker or "?" not in pattern:
        return _StarGlob(segments) if len(segments) > 1 else _Literal(pattern)
    parts = [_escape(segment) for segment in segments]
    if len(parts) == 1:
        expression = parts[0] + r"\Z"
    else:
        middle = "".join(f"(?>.*?{part})" for part in parts[1:-1] if part)
        # looking back from the end finds the last segment in one step
        last = rf"(?>.{{{len(segments[-1])},}})(?<={parts[-1]})\Z" if parts[-1] else ""
        expression = parts[0] + middle + last
    return _RegexGlob(re.compile(expression, re.DOTALL), _longest_literal(segments), truncates=False)


@lru_cache(maxsize=4096)
def word_glob(pattern: str, *, literal: bool = False) -> Glob:
    """Compile a pattern that must match a substring which starts and ends at a word boundary.

    With ``literal`` true ``*`` and ``?`` stand for themselves.
    """
    segments = [pattern] if literal else pattern.split("*")
    parts = [re.escape(pattern)] if literal else [_escape(segment) for segment in segments]
    needle = pattern if literal else _longest_literal(segments)
    # a pattern that begins (ends) with * may begin (end) where the value does, which is a boundary
    if parts[0]:
        parts[0] = _STARTS + parts[0]
    if parts[-1]:
        parts[-1] += _ENDS
    expression = "".join(f"(?>.*?{part})" for part in parts if part)
    return _RegexGlob(re.compile(expression, re.DOTALL), needle, truncates=True)


def _escape(segment: str) -> str:
    return ".".join(re.escape(literal) for literal in segment.split("?"))


def _longest_literal(segments: list[str]) -> str:
    return max((literal for segment in segments for literal in segment.split("?")), key=len)
