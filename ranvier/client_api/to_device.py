"""Messages from device to device."""

from __future__ import annotations

from typing import Any

import msgspec

from ranvier.http.limits import RateLimiter
from ranvier.http.request import Request
from ranvier.http.response import Result
from ranvier.http.route import Auth, Route, versions
from ranvier.log.clock import Clock
from ranvier.users.to_device import ToDevice

V3 = versions("v3", "r0")


class SendBody(msgspec.Struct):
    """User to device (or ``*``) to content."""

    messages: dict[str, dict[str, dict[str, Any]]]


async def send_to_device(
    request: Request, *, to_device: ToDevice, limiter: RateLimiter, clock: Clock
) -> Result:
    """Send messages to devices. Source: client-server API, "Send-to-Device messaging"."""
    body = request.json(SendBody)
    sender = (request.user.user_id, request.user.device_id or "")
    event_type = request.params["event_type"]
    # Clients that can not read a message ask all devices for the key, and again.
    if event_type == "m.room_key_request" and request.user.rate_limited:
        limiter.check("rc_key_requests", " ".join(sender), clock.monotonic())
    await to_device.send(sender, event_type, request.params["txn_id"], body.messages)
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
