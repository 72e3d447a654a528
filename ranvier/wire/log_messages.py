"""A committed batch as it goes from one process to the others: a fixed header, then the rows."""

from __future__ import annotations

import struct
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from ranvier.wire.log_rows import Batch, EventRow, LogRow, Row

FORMAT: Final = 2
"""To be raised with any change of the rows. Who gets another one reads the rows from the database instead."""

SENDER_BYTES: Final = 8

_HEADER: Final = struct.Struct(f">B{SENDER_BYTES}sQQ")

_EVENT_FIELDS: Final = (
    "pos",
    "event_nid",
    "room_nid",
    "room_id",
    "version_id",
    "event_id",
    "type",
    "state_key",
    "sender",
    "depth",
    "origin_server_ts",
    "pdu",
    "snapshot_nid",
    "replaces_nid",
    "auth_chain",
    "txn_device",
    "txn_id",
    "state_changes",
    "redacts",
    "room_snapshot",
    "is_only_end",
)
_event_values: Final = attrgetter(*_EVENT_FIELDS, "redacted_because")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


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
    rows = [_event_list(row) if isinstance(row, EventRow) else row for row in batch.rows]
    return _HEADER.pack(FORMAT, sender, batch.previous, batch.last) + _encode(rows)


def encode_head(last: int, sender: bytes) -> bytes:
    """Make the message that says only how far the log goes: its rows are read from the database."""
    return _HEADER.pack(FORMAT, sender, last, last) + _encode([])


def decode_header(message: bytes) -> Header:
    """Read the header. Raises ValueError."""
    if len(message) < _HEADER.size:
        raise ValueError("a message about the log is too short")
    return Header(*_HEADER.unpack_from(message))


def decode_batch(message: bytes) -> Batch:
    """Read what ``encode_batch`` made. Raises ValueError."""
    header = decode_header(message)
    if header.format != FORMAT:
        raise ValueError(f"a message about the log has the format {header.format}")
    try:
        rows = [_row(values) for values in _decode(memoryview(message)[_HEADER.size :])]
    except (msgspec.MsgspecError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"a message about the log is unreadable: {error}") from error
    return Batch(header.previous, header.last, rows)


def _event_list(row: EventRow) -> list[Any]:
    values = list(_event_values(row))
    because: EventRow | None = values[-1]
    if because is not None:
        # One level: what redacted the redaction itself is not shown with the event.
        values[-1] = [*_event_values(because)[:-1], None]
    return values


def _row(values: list[Any]) -> Row:
    if isinstance(values[0], str):  # the kind of a row that is no event
        return LogRow(
            kind=values[0],
            pos=values[1],
            room_id=values[2],
            user_id=values[3],
            device_id=values[4],
            key=values[5],
            key2=values[6],
            body=values[7],
        )
    return _event(values)


def _event(values: list[Any]) -> EventRow:
    # Each worker does this for each event of the whole server: by keywords it would take three times as long.
    row = EventRow.__new__(EventRow)
    (
        row.pos,
        row.event_nid,
        row.room_nid,
        row.room_id,
        row.version_id,
        row.event_id,
        row.type,
        row.state_key,
        row.sender,
        row.depth,
        row.origin_server_ts,
        row.pdu,
        row.snapshot_nid,
        row.replaces_nid,
        row.auth_chain,
        row.txn_device,
        row.txn_id,
        changes,
        row.redacts,
        snapshot,
        row.is_only_end,
        because,
    ) = values
    row.state_changes = [tuple(key) for key in changes] if changes else ()
    row.room_snapshot = None if snapshot is None else tuple(snapshot)
    row.redacted_because = None if because is None else _event(because)
    row.forget_forms()
    return row
