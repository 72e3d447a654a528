"""A request that one worker passes on to another, and the answer."""

from __future__ import annotations

import msgspec


class ForwardedRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request whose holder is known and whose rate limits were counted already.

    ``path`` and ``query_string`` are raw, ``headers`` without the access token, ``requester`` as
    ``http.forwarding`` encodes it (empty: nobody asks). ``endpoint`` and ``params`` are what its sender found
    by the path; a worker of another version, which may know them by other names, looks for itself.
    ``known_at`` is how far its sender had followed the log when it looked who asks; -1: as far as anybody.
    """

    method: str
    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ip: str
    scheme: str
    request_id: str
    requester: bytes
    endpoint: str = ""
    params: dict[str, str] = {}
    known_at: int = -1


class ForwardedAnswer(msgspec.Struct, array_like=True, frozen=True):
    """A whole answer."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes
