"""A committed batch as it goes from one process to the others: a fixed header, then the rows."""

from __future__ import annotations

import struct
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from ranvier.wire.log_rows import Batch, EventRow, LogRow, Row

FORMAT: Final = 3
"""To be raised with any change of the rows. Who gets another one reads the rows from the database instead."""

SENDER_BYTES: Final = 8

_HEADER: Final = struct.Struct(f">B{SENDER_BYTES}sQQ")

_WIRE_FIELDS: Final = [name for name in EventRow.__struct_fields__ if not name.startswith("known_")]
_event_values: Final = attrgetter(*_WIRE_FIELDS)
_BECAUSE: Final = _WIRE_FIELDS.index("redacted_because")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[list[EventRow], list[LogRow]]).decode


class Header(NamedTuple):
    """What a message says before its rows: who sent it, and which positions of the log it is about.

    ``format`` is that of the rows; with another one than ``FORMAT`` they can not be read.
    """

    format: int
    sender: bytes
    previous: int
    last: int


def encode_batch(batch: Batch, sender: bytes) -> bytes:
    """Make the message that carries a batch; ``sender`` has ``SENDER_BYTES`` bytes."""
    events = [_event_list(row) for row in batch.rows if isinstance(row, EventRow)]
    others = [row for row in batch.rows if isinstance(row, LogRow)]
    return _HEADER.pack(FORMAT, sender, batch.previous, batch.last) + _encode((events, others))


def encode_head(last: int, sender: bytes) -> bytes:
    """Make the message that says only how far the log goes: its rows are read from the database."""
    return _HEADER.pack(FORMAT, sender, last, last) + _encode(([], []))


def decode_header(message: bytes) -> Header:
    """Read the header. Raises ValueError."""
    if len(message) < _HEADER.size:
        raise ValueError("a message about the log is too short")
    return Header(*_HEADER.unpack_from(message))


def decode_batch(message: bytes, header: Header) -> Batch:
    """Read what ``encode_batch`` made. Raises ValueError."""
    if header.format != FORMAT:
        raise ValueError(f"a message about the log has the format {header.format}")
    try:
        events, others = _decode(memoryview(message)[_HEADER.size :])
    except msgspec.MsgspecError as error:
        raise ValueError(f"a message about the log is unreadable: {error}") from error
    rows: list[Row] = [*events, *others]
    if events and others:
        rows.sort(key=attrgetter("pos"))
    return Batch(header.previous, header.last, rows)


def _event_list(row: EventRow) -> list[Any]:
    values = list(_event_values(row))
    because = row.redacted_because
    if because is not None:
        # One level: what redacted the redaction itself is not shown with the event.
        inner = values[_BECAUSE] = list(_event_values(because))
        inner[_BECAUSE] = None
    return values
