"""Messages from device to device."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.request import Request
from ranvier.http.response import Result
from ranvier.http.route import Auth, Route, versions
from ranvier.users.to_device import ToDevice

V3 = versions("v3", "r0")


class SendBody(msgspec.Struct):
    """User to device (or ``*``) to content."""

    messages: dict[str, dict[str, dict[str, Any]]]


async def send_to_device(request: Request, *, to_device: ToDevice) -> Result:
    """Send messages to devices. Source: client-server API, "Send-to-Device messaging"."""
    body = request.json(SendBody)
    sender = (request.user.user_id, request.user.device_id or "")
    await to_device.send(sender, request.params["event_type"], request.params["txn_id"], body.messages)
    return {}


ROUTES = [
    Route(
        "PUT",
        V3("/sendToDevice/{event_type}/{txn_id}"),
        send_to_device,
        auth=Auth.GUEST,
        placed_by="user",
    ),
]
