"""``GET /sync``."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ranvier.http.request import Request, parse_query
from ranvier.http.route import PLACED_BY_USER, Auth, Route, versions
from ranvier.spec.errors import MatrixError
from ranvier.sync.assemble import SyncAssembler, SyncRequest
from ranvier.sync.long_polls import Asked, LongPolls, RepeatedPoll
from ranvier.users.filters import Filters
from ranvier.users.presence import Presence
from ranvier.wire.tokens import parse_token

_MAX_TIMEOUT_MS: Final = 10 * 60 * 1000
_PRESENCES: Final = ("online", "offline", "unavailable")
_STATE_AFTER: Final = ("use_state_after", "org.matrix.msc4222.use_state_after")
# Filters may be long; what is longer than this is not kept.
_LONGEST_KEPT: Final = 2000


async def sync(request: Request, *, assembler: SyncAssembler, filters: Filters, presence: Presence) -> bytes:
    """Tell a client what is new, or everything; see the specification's ``GET /_matrix/client/v3/sync``."""
    user = request.user
    since = request.str_param("since", None)
    set_presence = request.choice_param("set_presence", _PRESENCES, "online")
    wanted = SyncRequest(
        user_id=user.user_id,
        device_id=user.device_id,
        filter=await filters.get(user.user_id, request.str_param("filter", None)),
        since=parse_token(since) if since else None,
        # It may have waited before it came here.
        timeout_s=_timeout_s(request) - request.age_s,
        full_state=request.bool_param("full_state"),
        state_after=any(request.bool_param(name) for name in _STATE_AFTER),
    )
    async with presence.syncing(user.user_id, user.device_id, set_presence):
        return await assembler.answer(wanted)


def sync_at_once(query: bytes, *, long_polls: LongPolls) -> RepeatedPoll | None:
    """Read what a client that polls says each time, but for where it is."""
    asked = _asked(query) if len(query) <= _LONGEST_KEPT else None
    return None if asked is None else RepeatedPoll(long_polls, asked)


@lru_cache(maxsize=2000)
def _asked(query_string: bytes) -> Asked | None:
    """Read all parameters but the value of ``since``; None for what ``sync`` has to see to."""
    request = Request("GET", "", _ROUTE, query_string=query_string)
    try:
        query = parse_query(query_string)
        timeout_s = _timeout_s(request)
        if query.get("since") != [""] or request.bool_param("full_state") or not timeout_s:
            return None
        return Asked(
            request.str_param("filter", None),
            timeout_s,
            request.choice_param("set_presence", _PRESENCES, "online"),
            any(request.bool_param(name) for name in _STATE_AFTER),
        )
    except MatrixError:
        return None


def _timeout_s(request: Request) -> float:
    # NOTSPEC: clients that ask for hours are answered earlier, and ask again.
    return min(request.int_param("timeout", 0), _MAX_TIMEOUT_MS) / 1000


_ROUTE: Final = Route(
    "GET",
    versions("v3", "r0")("/sync"),
    sync,
    auth=Auth.GUEST,
    placed_by=PLACED_BY_USER,
    long_poll=True,
    at_once=sync_at_once,
)
ROUTES = [_ROUTE]
