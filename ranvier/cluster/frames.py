"""Frames of the connection between two workers: a length, what it is, whose, and its bytes."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding the body of a frame raises when it is none."""

MAX_FRAME: Final = 64 << 20
NONCE_BYTES: Final = 32
_HEAD: Final = struct.Struct(">IBQd")

CHALLENGE: Final = 1  # server to client: a nonce
HELLO: Final = 2  # client to server: proof of the secret, a nonce, and its announcement
WELCOME: Final = 3  # server to client: come in, and proof of the secret
CALL: Final = 4  # client to server: do this, if you begin before the deadline
ACCEPTED: Final = 5  # server to client: begun, and not done yet
ANSWER: Final = 6  # server to client
REFUSED: Final = 7  # server to client: not begun, and will not be
NEWS: Final = 8  # client to server: its announcement changed
NOTICE: Final = 9  # client to server: something that needs no answer, and may be lost


Take = Callable[[int, int, float, bytes], None]
"""Takes one message: its kind, whose it is, a time, its body.

The time is of the server's clock, in seconds (``log.clock.steady_s``): a call's deadline, or now.
"""


class FrameError(Exception):
    """Say that the other side does not speak this protocol."""


def encode(kind: int, id: int = 0, body: bytes = b"", time: float = 0.0) -> bytes:
    """Make a frame."""
    return _HEAD.pack(len(body), kind, id, time) + body


class FrameReader:
    """Cut a stream of bytes into frames, each of which is given to ``take``."""

    def __init__(self, take: Take, max_frame: int = MAX_FRAME) -> None:
        self._take = take
        self._kept = bytearray()
        self.max_frame = max_frame

    def feed(self, data: bytes) -> None:
        """Give the frames that are complete with this piece. Raises FrameError for one that is too large."""
        if not self._kept and len(data) >= _HEAD.size:
            length, kind, id, time = _HEAD.unpack_from(data)
            if len(data) == _HEAD.size + length <= self.max_frame:  # one that is whole, as most are
                self._take(kind, id, time, data[_HEAD.size :])
                return
        self._cut(data)

    def _cut(self, data: bytes) -> None:
        kept = self._kept
        kept += data
        while len(kept) >= _HEAD.size:
            length, kind, id, time = _HEAD.unpack_from(kept)
            if length > self.max_frame:
                raise FrameError(f"a frame of {length} bytes")
            end = _HEAD.size + length
            if len(kept) < end:
                return
            body = bytes(kept[_HEAD.size : end])
            del kept[:end]
            self._take(kind, id, time, body)


def proof(secret: str, nonce: bytes, side: bytes = b"client") -> bytes:
    """Prove that one knows the secret, without telling it; each side in its own way, so an echo is none."""
    return hmac.digest(secret.encode(), b"ranvier worker " + side + b" " + nonce, sha256)
