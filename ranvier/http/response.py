"""What handlers return, and how it becomes bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

JSON = "application/json"

_struct_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Response:
    """Answer with more than a 200 and JSON.

    ``body`` is bytes as they are, an object to encode, or an asynchronous iterator of bytes that is sent
    chunk by chunk (and closed whatever happens). ``headers`` are added to those that every answer has.
    """

    status: int = 200
    body: Any = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON

    @property
    def is_stream(self) -> bool:
        """Tell whether the body comes chunk by chunk."""
        return isinstance(self.body, AsyncIterator)


# Ready JSON, something to encode, or a whole response. ``dict[str, Any]`` and ``list[Any]`` in practice.
Result = bytes | dict[str, Any] | list[Any] | msgspec.Struct | Response


def encode(value: object) -> bytes:
    """Encode a handler's answer as JSON; bytes are taken to be JSON already.

    Dicts and lists may hold ``orjson.Fragment``, ``msgspec.Raw`` and structs. Raises ``TypeError`` for what
    has no JSON form.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, msgspec.Struct):
        return _struct_encoder.encode(value)
    return orjson.dumps(value, _encode_other)


def _encode_other(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return orjson.Fragment(_struct_encoder.encode(value))
    if isinstance(value, msgspec.Raw):
        return orjson.Fragment(bytes(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")
