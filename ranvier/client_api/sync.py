"""``GET /sync``."""

from __future__ import annotations

from ranvier.http.request import Request
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.sync.assemble import SyncAssembler, SyncRequest
from ranvier.users.filters import Filters
from ranvier.users.presence import Presence
from ranvier.wire.tokens import parse_token

_MAX_TIMEOUT_MS = 10 * 60 * 1000


async def sync(request: Request, *, assembler: SyncAssembler, filters: Filters, presence: Presence) -> bytes:
    """Tell a client what is new, or everything; see the specification's ``GET /_matrix/client/v3/sync``."""
    user = request.user
    since = request.str_param("since", None)
    set_presence = request.choice_param("set_presence", ("online", "offline", "unavailable"), "online")
    # NOTSPEC: clients that ask for hours are answered earlier, and ask again.
    timeout_ms = min(request.int_param("timeout", 0), _MAX_TIMEOUT_MS)
    wanted = SyncRequest(
        user_id=user.user_id,
        device_id=user.device_id,
        filter=await filters.get(user.user_id, request.str_param("filter", None)),
        since=parse_token(since) if since else None,
        timeout_s=timeout_ms / 1000,
        full_state=request.bool_param("full_state"),
        state_after=request.bool_param("use_state_after")
        or request.bool_param("org.matrix.msc4222.use_state_after"),
    )
    async with presence.syncing(user.user_id, user.device_id, set_presence):
        return await assembler.answer(wanted)


ROUTES = [
    Route(
        "GET",
        versions("v3", "r0")("/sync"),
        sync,
        auth=Auth.GUEST,
        placed_by=PLACED_BY_USER,
        long_poll=True,
    )
]
