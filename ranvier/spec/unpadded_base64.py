"""Unpadded Base64, in which Matrix writes hashes, keys and signatures.

Source: appendices, "Unpadded Base64".
"""

from __future__ import annotations

import binascii

from ranvier.spec.errors import invalid_param

_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def encode_base64(data: bytes) -> str:
    """Write ``data`` in the standard alphabet without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode("ascii")


def encode_urlsafe_base64(data: bytes) -> str:
    """Write ``data`` in the URL-safe alphabet without padding."""
    # Bytes translate ten times as fast as a string.
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL_SAFE).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Read the standard alphabet, with or without padding, or raise 400 ``M_INVALID_PARAM``."""
    bare = text.rstrip("=")
    try:
        return binascii.a2b_base64(bare + "=" * (-len(bare) % 4), strict_mode=True)
    except ValueError:  # binascii.Error, and text that is not ASCII
        raise invalid_param("This is not Base64") from None
