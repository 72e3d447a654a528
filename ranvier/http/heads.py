"""The heads of requests, and those that come again: a client that polls sends the same one but for ``since``.

To parse a head, to find its endpoint and to read its headers costs more than to answer such a request. So the
heads that were answered at once are kept, with the value of ``since`` cut out, and what comes as before is
not parsed again.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ranvier.http.rendering import Headers

_LONGEST: Final = 2000
# Nothing in the value can end the query or mean another character.
_SINCE: Final = re.compile(rb"[?&]since=([A-Za-z0-9_.~-]+)")
_GET: Final = b"GET "
_END: Final = b"\r\n\r\n"


class Head:
    """The head of a request, as it was parsed.

    ``raw_path`` and ``query_string`` are as they came; ``headers`` have lower-case names. ``modern`` is
    HTTP/1.1. ``known`` is for what the application found out about such a request. ``before`` and ``after``
    are what a head that may come again has in its query around the value of ``since``.
    """

    __slots__ = (
        "after",
        "before",
        "expects_continue",
        "headers",
        "keep_alive",
        "known",
        "method",
        "modern",
        "query_string",
        "raw_path",
    )

    def __init__(
        self,
        *,
        method: str,
        raw_path: bytes,
        query_string: bytes,
        headers: Headers,
        modern: bool,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.query_string = query_string
        self.headers = headers
        self.modern = modern
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.known: Any = None
        self.before = self.after = b""


def cut_since(query_string: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Give what is before the value of ``since``, the value, and what is behind; None where there is none."""
    found = _SINCE.search(b"?" + query_string)
    if found is None:
        return None
    start, end = found.start(1) - 1, found.end(1) - 1
    return query_string[:start], query_string[start:end], query_string[end:]


class RepeatedHeads:
    """Know the heads that came before. Bounded: the oldest half goes when there are too many."""

    def __init__(self, max_kept: int = 20_000) -> None:
        self._max_kept = max_kept
        self._kept: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Give the head that some bytes are, and the value that ``since`` has now; None if it is not known.

        The bytes must begin where a request does. They are a whole request then, without a body.
        """
        if not data.startswith(_GET):
            return None  # to look for it in all that is written costs more than it is worth
        found = _SINCE.search(data, 0, _LONGEST)
        if found is None:
            return None
        start, end = found.span(1)
        kept = self._kept.get(data[:start] + data[end:])
        return None if kept is None else (kept, data[start:end])

    def keep(self, data: bytes, head: Head) -> None:
        """Remember a head, parsed from exactly these bytes."""
        found = _SINCE.search(data, 0, _LONGEST)
        if found is None or len(data) > _LONGEST or not (data.startswith(_GET) and data.endswith(_END)):
            return
        target = data[: data.index(b"\r\n")]
        # In the path, or behind it, it would be something else.
        if not target.find(b"?") <= found.start() < len(target) or b"#" in target or b"?" not in target:
            return
        if len(self._kept) >= self._max_kept:
            for key in list(self._kept)[: self._max_kept // 2]:
                del self._kept[key]
        cut = cut_since(head.query_string)
        assert cut is not None, "its bytes have one"
        head.before, _, head.after = cut
        self._kept[data[: found.start(1)] + data[found.end(1) :]] = head
