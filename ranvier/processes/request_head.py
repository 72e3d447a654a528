"""What the first bytes of a connection say about which worker it belongs to."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final
from urllib.parse import unquote

from ranvier.cluster.placement import READ, ROOM, USER

PEEKED_BYTES: Final = 4096

_TARGET: Final = re.compile(rb"[A-Z]+ ([^ \r\n]+)")
_ROOM: Final = re.compile(rb"/(?:rooms|join|knock)/([^/?]+)")
_TOKEN: Final = re.compile(rb"\r\nauthorization: *bearer +([^\r\n]+)", re.IGNORECASE)
_QUERY_TOKEN: Final = re.compile(rb"[?&]access_token=([^& ]+)")


def key_of(head: bytes) -> tuple[str, str] | None:
    """Give the kind and the key by which a request is placed: its room, else its user, else None.

    The kind says whether the room is written or read. A user is known by the token alone, of which only a
    hash goes on from here.
    """
    target = _TARGET.match(head)
    if target is None:
        return None
    room = _ROOM.search(target[1].partition(b"?")[0])
    if room is not None:
        return READ if head.startswith(b"GET ") else ROOM, unquote(room[1].decode("latin-1"))
    token = _TOKEN.search(head) or _QUERY_TOKEN.search(target[1])
    if token is not None:
        return USER, sha256(token[1].strip()).hexdigest()
    return None


def is_enough(head: bytes) -> bool:
    """Tell whether more bytes would say nothing more."""
    if len(head) >= PEEKED_BYTES or b"\r\n\r\n" in head:
        return True
    key = key_of(head)
    return key is not None and key[0] != USER
