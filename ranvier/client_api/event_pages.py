"""What the endpoints that page through events share: their parameters, and the parts of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import orjson

from ranvier.http.request import Request
from ranvier.rooms.access import State
from ranvier.rooms.room import MEMBER
from ranvier.rooms.timeline import Timeline
from ranvier.spec.errors import invalid_param
from ranvier.spec.filters import RoomEventFilter, parse_room_event_filter
from ranvier.sync.render import Rendering
from ranvier.wire.log_rows import EventRow
from ranvier.wire.tokens import Token, parse_token

DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 1000
_EVERYTHING: Final = RoomEventFilter()


def limit_of(request: Request, *, minimum: int = 0, maximum: int = MAX_LIMIT) -> int:
    """Give the ``limit`` parameter; more than ``maximum`` is capped. Raises ``M_INVALID_PARAM``."""
    return min(request.int_param("limit", DEFAULT_LIMIT, minimum), maximum)


async def position_of(request: Request, name: str, timeline: Timeline) -> int | None:
    """Give the position of a token parameter, None without one. Raises ``M_INVALID_PARAM``."""
    text = request.str_param(name, None)
    if text is None:
        return None
    pos = parse_token(text, name).pos
    if pos > timeline.now:
        await timeline.reach(pos)
    return pos


def filter_of(request: Request) -> RoomEventFilter:
    """Read the ``filter`` parameter, a RoomEventFilter. Raises ``M_INVALID_PARAM``, ``M_BAD_JSON``."""
    text = request.str_param("filter", None)
    if not text:
        return _EVERYTHING
    try:
        definition = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise invalid_param("filter is not JSON") from None
    return parse_room_event_filter(definition)


def token(pos: int) -> bytes:
    """Write the token of a position as JSON."""
    return b'"%b"' % str(Token(pos)).encode()


async def event_array(
    rendering: Rendering, rows: Sequence[EventRow], before: bytes = b"", after: bytes = b""
) -> bytes:
    """Write a JSON array of events; a long one in pieces, so that other requests get their turn.

    ``before`` and ``after`` are what an answer has around it: a long one is joined but once.
    """
    return b"".join([before, b"[", *await rendering.event_list(rows), b"]", after])


def members_of(state: State, rows: Iterable[EventRow]) -> list[EventRow]:
    """Give the member events of those who sent some events.

    Source: client-server API, "Lazy-loading room members".
    """
    senders = dict.fromkeys(row.sender for row in rows)
    return [member for sender in senders if (member := state.get((MEMBER, sender))) is not None]


def json_text(text: str) -> bytes:
    """Write a string as JSON."""
    return orjson.dumps(text)
