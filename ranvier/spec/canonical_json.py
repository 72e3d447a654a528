"""Canonical JSON: the one way to write a value, so that its hash and signature mean something.

Source: appendices, "Canonical JSON".
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import orjson

from ranvier.spec.errors import bad_json

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON library reads exactly."""

MAX_DEPTH = 200
"""Deepest nesting that is accepted (orjson itself stops at 254, and answers wrap events further)."""


def encode(value: Any, *, keep_floats: bool = False) -> bytes:
    """Write ``value`` as canonical JSON.

    A float is not permitted by the specification: one without a fraction is written as the integer
    that it is (``1e10`` becomes ``10000000000``), any other raises. With ``keep_floats``, which is
    for events of room versions 1 to 5, floats stay floats in their shortest form.
    Raises 400 ``M_BAD_JSON`` for what has no form at all: NaN, lone surrogates, keys that are no
    strings, nesting that is too deep to write (``check`` bounds it more tightly).
    """
    # orjson writes NaN as null, and floats unlike the servers that made the old events did.
    if _has_float(value):
        return _encode_with_care(value, keep_floats)
    try:
        # Sorting by UTF-8 bytes, as orjson does, is sorting by code point.
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers over 64 bits, and what is no JSON
        return _encode_with_care(value, keep_floats)


def _has_float(value: Any) -> bool:
    # Breadth first, without a bound: each container is looked into once, and what is too deep for
    # orjson ends in `check`.
    containers: list[Any] = [(value,)]
    for container in containers:
        for item in container:
            kind = type(item)
            if kind is dict:
                containers.append(item.values())
            elif kind is list:
                containers.append(item)
            elif kind is float:
                return True
    return False


def _encode_with_care(value: Any, keep_floats: bool) -> bytes:
    check(value, strict=False)
    text = json.dumps(_plain(value, keep_floats), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise bad_json("A string holds half of a surrogate pair") from None


def _plain(value: Any, keep_floats: bool) -> Any:
    """Copy a checked value (so the recursion is bounded) in the form in which its numbers are written."""
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise bad_json("A key of a JSON object is not a string")
        return {key: _plain(item, keep_floats) for key, item in value.items()}
    if type(value) is list:
        return [_plain(item, keep_floats) for item in value]
    if type(value) is float and not keep_floats:
        if not value.is_integer():
            raise bad_json("Canonical JSON has no numbers with a fraction")
        return int(value)
    return value


def check(value: Any, *, strict: bool) -> None:
    """Check that ``value``, as parsed from JSON, may be part of an event.

    ``strict`` (room versions 6 and later): integers only, within +-(2^53 - 1). Otherwise any number
    but NaN and the infinities. Nesting is bounded by ``MAX_DEPTH`` in every case; the walk is
    iterative. Raises 400 ``M_BAD_JSON``.
    """
    depth = 0
    level: list[Any] = [(value,)]
    while level:
        if depth > MAX_DEPTH:
            raise bad_json(f"JSON is nested deeper than {MAX_DEPTH} levels")
        depth += 1
        inner: list[Any] = []
        for container in level:
            for item in container:
                kind = type(item)
                if kind is str:
                    continue
                if kind is dict:
                    inner.append(item.values())
                elif kind is list:
                    inner.append(item)
                elif kind is int:
                    if strict and not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                        raise bad_json("An integer is outside of the range +-(2^53 - 1)")
                elif item is not None and kind is not bool:
                    _check_unusual(item, strict)
        level = inner


def _check_unusual(item: object, strict: bool) -> None:
    if not isinstance(item, float):
        raise bad_json(f"A value of type {type(item).__name__} is no JSON")
    # orjson reads integers of 2^64 and more as floats, so those end here too.
    if strict:
        raise bad_json("Numbers must be integers, written without fraction or exponent")
    if not isfinite(item):
        raise bad_json("NaN and Infinity are no JSON")
