"""What an examination cannot look at is told like everything else, and the rest is looked at all the same."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator

from ranvier.deploy.findings import Finding, error

CHECK = "examination"


def guarded(what: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Give the findings of one check; if it fails, that as the last one."""
    try:
        yield from found
    except Exception as failed:  # whatever it was, a finding says so
        yield unexamined(what, failed)


async def guarded_async(what: str, found: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    """Do the same for a check that waits."""
    try:
        async for finding in found:
            yield finding
    except Exception as failed:  # whatever it was, a finding says so
        yield unexamined(what, failed)


def unexamined(what: str, failed: Exception) -> Finding:
    """Say that something could not be looked at, and why."""
    if isinstance(failed, PermissionError) and os.geteuid() != 0:
        return error(CHECK, f"{what} could not be examined: {failed}", advice_if_closed())
    if isinstance(failed, OSError):
        return error(CHECK, f"{what} could not be examined: {failed}", "see what stands in the way of it")
    return error(
        CHECK,
        f"{what} could not be examined: {type(failed).__name__}: {failed}",
        "`ranvier doctor` did not expect this: look at it yourself, and report it with these words",
    )


def advice_if_closed() -> str:
    """Say what to do about what may not be opened: by whoever runs this, or by whom root acts as."""
    if 0 in os.getresuid():
        return "let the server's user do so; `ranvier deploy` gives what it wrote the right owner and mode"
    return "run this as root"
