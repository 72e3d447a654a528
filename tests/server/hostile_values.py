"""What a stranger may send where something else is meant, as JSON text, in a URL, as a whole body."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

Json = Any
Path = tuple[str | int, ...]

# JSON as text, as half of this can not be made from Python's values.
VALUES = (
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "9007199254740993",
    "-9223372036854775809",
    "18446744073709551616",
    "1" + "0" * 400,
    "1e400",
    "NaN",
    '""',
    '"\\u0000"',
    '"a\\u0000b"',
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"' + "a" * 256 + '"',
    '"' + "\U0001f4a5" * 100 + '"',
    '"no such value"',
    '"../..%2f%00"',
    '"@:"',
    '"!:"',
    '"$"',
    '"#a:b:c"',
    "[]",
    "[null]",
    '["\\u0000"]',
    "[[],{}]",
    "{}",
    '{"":""}',
    '{"\\u0000":"\\u0000"}',
    '{"\\ud800":1}',
    '{"a":1,"a":2}',
    '{"@x:y":{"a":[1]}}',
    "[" * 200 + "]" * 200,
)

BODIES = (
    b"",
    b" ",
    b"{",
    b"}",
    b"nul",
    b"null",
    b"true",
    b"[]",
    b'""',
    b"0",
    b"NaN",
    b"{'a': 1}",
    b'{"a":1,}',
    b'{"a":1}{"b":2}',
    b'{"a":1,"a":2}',
    b'{"\\u0061":1,"a":2}',
    b'{"a":NaN}',
    b'{"a":Infinity}',
    b'{"a":1e999}',
    b'{"a":' + b"1" * 5000 + b"}",
    b'{"a":"\\ud800"}',
    b'{"a":"\x00"}',
    b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 100_000,
    b'{"auth":[]}',
    b'{"auth":{"type":7,"session":[]}}',
    b'{"auth":{"type":"m.login.dummy","session":"\\u0000"}}',
)

# Pieces of a path or a query, already encoded, or not as they should be.
PIECES = (
    "",
    "%00",
    "a%00b",
    "%ED%A0%80",
    "%FF",
    "%",
    "%zz",
    "%2F",
    "..",
    ".",
    "%2e%2e%2f",
    "x" * 256,
    "%F0%9F%92%A5" * 70,
    "x" * 4000,
    "-1",
    "99999999999999999999",
    "1e3",
    "%D9%A1",
    "null",
    "%7B",
    "%7B%22limit%22:%22x%22%7D",
    "%5B%5D",
    "@%3A",
    "!",
    "!:",
    "$",
    "%23a:b",
    "s-1_-1",
    "s9223372036854775807_9223372036854775807",
    "s99999999999999999999",
    "t1-2_3",
)


def nodes(value: Json, path: Path = ()) -> Iterator[Path]:
    """Give the way to every value inside a body, without the body itself."""
    inner: Iterator[tuple[str | int, Json]] = iter(())
    if isinstance(value, dict):
        inner = iter(value.items())
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, child in inner:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def replaced(value: Json, path: Path, text: str) -> bytes:
    """Write a body with one value replaced by a piece of JSON."""
    mark = "the value that is replaced"
    return json.dumps(_with(value, path, mark)).replace(f'"{mark}"', text).encode()


def without(value: Json, path: Path) -> bytes:
    """Write a body with one value left out."""
    copied = json.loads(json.dumps(value))
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return json.dumps(copied).encode()


def _with(value: Json, path: Path, new: Json) -> Json:
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = _with(value[path[0]], path[1:], new)
    return copied


def hostile_bodies(good: Json, chance: random.Random, *, values_per_node: int) -> Iterator[bytes]:
    """Give bodies with one thing wrong each: every value left out, too long, and replaced by some others."""
    for path in nodes(good):
        yield without(good, path)
        for text in chance.sample(VALUES, values_per_node):
            yield replaced(good, path, text)
    yield json.dumps({**good, "unknown": {"a": [None]}, "\U0001f4a5": 1}).encode()
    yield json.dumps({**good, "long": "x" * 1_000_000}).encode()
    yield json.dumps({**good, "many": [0] * 100_000}).encode()
    yield json.dumps({**good, "wide": {str(number): {} for number in range(50_000)}}).encode()
    for path in chance.sample(list(nodes(good)), min(2, sum(1 for _ in nodes(good)))):
        yield replaced(good, path, '"' + "x" * 1_000_000 + '"')
        yield replaced(good, path, '"' + "x" * 60_000 + '"')
