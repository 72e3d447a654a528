"""Do the clocks agree? Leases, tokens and events carry times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ranvier.deploy.findings import Finding, error, warning

_WARN_MS: Final = 1000
_ERROR_MS: Final = 10_000


def check_clock(what: str, its_ms: int, before_ms: int, after_ms: int) -> Iterator[Finding]:
    """Compare a clock with this machine's, which was read before and after."""
    skew_ms = max(before_ms - its_ms, its_ms - after_ms, 0)
    if skew_ms < _WARN_MS:
        return
    told = error if skew_ms >= _ERROR_MS else warning
    yield told(
        "clock-skew",
        f"the clock of {what} and this machine's are {skew_ms / 1000:.1f} s apart",
        "run chrony or systemd-timesyncd on every machine",
    )
