"""Durations (``5m``) and sizes (``50M``), as Synapse writes them."""

from __future__ import annotations

import re

_MS = {
    "": 1,
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
    "y": 365 * 86_400_000,
}
_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_AMOUNT = re.compile(r"([0-9]{1,15})([A-Za-z]*)")
_MAX = 2**53


def parse_duration_ms(value: object) -> int:
    """Read a duration into milliseconds: a number of them, or ``90s``, ``5m``, ``24h``, ``7d``, ``1y``.

    Raises ``ValueError``.
    """
    return _parse(value, _MS)


def parse_size_bytes(value: object) -> int:
    """Read a size into bytes: a number of them, or ``512K``, ``50M``, ``1G``, ``1T`` (steps of 1024).

    Raises ``ValueError``.
    """
    return _parse(value, _BYTES)


def _parse(value: object, units: dict[str, int]) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(value)
    match = _AMOUNT.fullmatch(str(value))
    if match is None or match[2] not in units or int(match[1]) * units[match[2]] > _MAX:
        raise ValueError(value)
    return int(match[1]) * units[match[2]]
