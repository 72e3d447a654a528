"""Dot-separated property paths: ``content.m\\.relates_to.rel_type``.

Source: appendices, "Dot-separated property paths".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

Path = tuple[str, ...]
"""The property names from the outermost inwards."""

_ESCAPED = re.compile(r"\\([.\\])|(\.)|((?:[^.\\]|\\(?![.\\]))+)")


class _Missing:
    """The one value that says that a property is not there (``None`` is JSON's null)."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@lru_cache(maxsize=4096)
def parse_path(text: str) -> Path:
    r"""Split a path into names; ``\.`` is a dot and ``\\`` a backslash within a name.

    "Other escape sequences are left as-is": a backslash before anything else is a backslash.
    """
    names = [""]
    for escaped, dot, plain in _ESCAPED.findall(text):
        if dot:
            names.append("")
        else:
            names[-1] += escaped or plain
    return tuple(names)


def value_at(value: Any, path: Path) -> Any:
    """Give what stands at ``path`` within nested JSON objects, or ``MISSING``."""
    for name in path:
        if not isinstance(value, Mapping):
            return MISSING
        value = value.get(name, MISSING)
        if value is MISSING:
            return MISSING
    return value
