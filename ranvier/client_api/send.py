"""Sending: message events, state events, redactions."""

from __future__ import annotations

from typing import Any

import orjson

from ranvier.http.request import Request
from ranvier.http.route import ONCE_ID, Auth, Route, versions
from ranvier.rooms.send import Sending
from ranvier.spec.errors import bad_json

V3 = versions("v3", "r0")


async def send_event(request: Request, *, sending: Sending) -> bytes:
    """Send a message event. Source: client-server API, ``PUT /rooms/{roomId}/send/…``."""
    params = request.params
    event_id = await sending.send(
        request.user,
        params["room_id"],
        params["event_type"],
        request.json_object(),
        params["txn_id"],
        origin_server_ts=_timestamp(request),
    )
    return _answer(event_id)


async def send_state(request: Request, *, sending: Sending) -> bytes:
    """Set a piece of state. Source: client-server API, ``PUT /rooms/{roomId}/state/…``."""
    params = request.params
    event_id = await sending.send_state(
        request.user,
        params["room_id"],
        params["event_type"],
        params.get("state_key", ""),
        request.json_object(),
        once_id=params.get(ONCE_ID),
        origin_server_ts=_timestamp(request),
    )
    return _answer(event_id)


async def redact_event(request: Request, *, sending: Sending) -> bytes:
    """Redact an event. Source: client-server API, ``PUT /rooms/{roomId}/redact/…``."""
    params = request.params
    body: dict[str, Any] = request.json_object(allow_empty=True)
    if not isinstance(body.get("reason", ""), str):
        raise bad_json("'reason' must be a string")
    event_id = await sending.redact(
        request.user, params["room_id"], params["event_id"], body, params["txn_id"]
    )
    return _answer(event_id)


def _timestamp(request: Request) -> int | None:
    """Give the time that an application service wants its event to have, in milliseconds.

    Source: application service API, "Timestamp massaging": ignored for everybody else.
    """
    if request.user.appservice_id is None:
        return None
    return request.int_param("ts", None)


def _answer(event_id: str) -> bytes:
    return b'{"event_id":%b}' % orjson.dumps(event_id)


_STATE = "/rooms/{room_id}/state/{event_type}"

ROUTES = [
    Route(
        "PUT",
        V3("/rooms/{room_id}/send/{event_type}/{txn_id}"),
        send_event,
        auth=Auth.GUEST,
        placed_by="room_id",
    ),
    Route("PUT", V3(_STATE + "/{state_key}"), send_state, auth=Auth.GUEST, placed_by="room_id", once=True),
    Route(
        "PUT",
        V3(_STATE) + V3(_STATE + "/"),
        send_state,
        auth=Auth.GUEST,
        placed_by="room_id",
        once=True,
        name="send_state_without_key",
    ),
    Route("PUT", V3("/rooms/{room_id}/redact/{event_id}/{txn_id}"), redact_event, placed_by="room_id"),
]
