"""Reading JSON that a stranger wrote: what is refused, and why it is cheap to know.

``orjson`` and ``msgspec`` both keep the last of two equal keys. When the parsed value is written back, the
number of colons tells whether a key was lost: outside strings each key has exactly one, and inside strings
their number stays the same unless the sender wrote one as ``\\u003a`` (then the slow, exact check decides).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import orjson

from ranvier.spec.errors import MatrixError, bad_json

MAX_DEPTH = 100


def not_json(message: str) -> MatrixError:
    """Say that the body is not JSON at all (400 ``M_NOT_JSON``)."""
    return MatrixError("M_NOT_JSON", 400, message)


def parse(body: bytes) -> Any:
    """Parse a body and refuse what cannot be passed on faithfully.

    Raises ``M_NOT_JSON`` for what is not JSON in UTF-8 (an empty body too) and ``M_BAD_JSON`` for more than
    ``MAX_DEPTH`` levels, two equal keys in one object, numbers outside 64 bits, and the character NUL.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise bad_json(f"JSON is nested deeper than {MAX_DEPTH} levels") from None
    except msgspec.ValidationError as error:  # a number that no float and no integer holds
        raise bad_json(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(f"Body is not JSON: {error}") from None
    # Each level opens a bracket, so few brackets cannot be deep: the usual body is not walked.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    _check_keys(body, value)
    # NOTSPEC: NUL is a character of JSON like any other, but no text of PostgreSQL holds it, and nothing that
    # people write or programs make for Matrix has it. It can only come escaped, so looking for it is cheap.
    if b"\\u0000" in body:
        _check_no_nul(value)
    return value


def _check_depth(value: Any) -> None:
    """Walk the containers level by level (no recursion: the sender chooses the depth)."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if type(parent) in (dict, list)
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in (dict, list)
        ]
        if not level:
            return
    raise bad_json(f"JSON is nested deeper than {MAX_DEPTH} levels")


def _check_no_nul(value: Any) -> None:
    """Look at every text, the keys of objects too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if type(one) is dict:
            waiting += one.keys()
            waiting += one.values()
        elif type(one) is list:
            waiting += one
        elif type(one) is str and "\0" in one:
            raise bad_json("JSON must not hold the character NUL (\\u0000)")


def _check_keys(body: bytes, value: Any) -> None:
    try:
        written = orjson.dumps(value)
    except TypeError as error:  # integers beyond 64 bits, lone surrogates
        raise bad_json(f"JSON holds a value out of range: {error}") from None
    if b"\\u003" in body or body.count(b":") != written.count(b":"):
        json.loads(body, object_pairs_hook=_refuse_duplicates)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise bad_json(f"JSON object has the key {key[:100]!r} twice")
        seen.add(key)
