"""Receipts and read markers."""

from __future__ import annotations

import msgspec

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Route, versions
from ranvier.spec.errors import invalid_param
from ranvier.users.account_data import FULLY_READ
from ranvier.users.receipts import READ, READ_PRIVATE, UNTHREADED, Mark, Receipts

V3 = versions("v3", "r0")


class ReadMarkers(msgspec.Struct, frozen=True):
    """Body of ``POST …/read_markers``: event ids."""

    fully_read: str | None = msgspec.field(name=FULLY_READ, default=None)
    read: str | None = msgspec.field(name=READ, default=None)
    read_private: str | None = msgspec.field(name=READ_PRIVATE, default=None)


async def send_receipt(request: Request, *, receipts: Receipts) -> bytes:
    """Move one receipt, or the read marker."""
    receipt_type = request.params["receipt_type"]
    if receipt_type not in (READ, READ_PRIVATE, FULLY_READ):
        raise invalid_param(f"Receipt type must be {READ}, {READ_PRIVATE} or {FULLY_READ}")
    # NOTSPEC: the body "is required", but older clients send none
    body = request.json_object(allow_empty=True)
    thread_id = UNTHREADED
    if "thread_id" in body:
        thread_id = body["thread_id"]
        if not isinstance(thread_id, str) or not thread_id:
            raise invalid_param("thread_id field must be a non-empty string")
        if receipt_type == FULLY_READ:
            raise invalid_param(f"thread_id is not compatible with {FULLY_READ} receipts")
    mark = Mark(receipt_type, request.params["event_id"], thread_id)
    await receipts.mark(request.user.user_id, request.params["room_id"], [mark])
    return b"{}"


async def set_read_markers(request: Request, *, receipts: Receipts) -> bytes:
    """Move the read marker and, with it, receipts."""
    body = request.json(ReadMarkers, allow_empty=True)
    wanted = ((FULLY_READ, body.fully_read), (READ, body.read), (READ_PRIVATE, body.read_private))
    marks = [Mark(receipt_type, event_id) for receipt_type, event_id in wanted if event_id is not None]
    await receipts.mark(request.user.user_id, request.params["room_id"], marks)
    return b"{}"


ROUTES = [
    Route(
        "POST",
        V3("/rooms/{room_id}/receipt/{receipt_type}/{event_id}"),
        send_receipt,
        placed_by=PLACED_BY_USER,
    ),
    Route("POST", V3("/rooms/{room_id}/read_markers"), set_read_markers, placed_by=PLACED_BY_USER),
]
