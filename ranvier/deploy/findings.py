"""What an examination finds: each thing with how bad it is and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Severity = Literal["ok", "note", "warning", "error"]
_STATUS: Final = {"ok": 0, "note": 0, "warning": 1, "error": 2}


class Finding(msgspec.Struct, frozen=True):
    """One finding. ``check`` is a stable name for machines, ``advice`` what is to be done about it."""

    severity: Severity
    check: str
    message: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"\n         → {self.advice}" if self.advice else ""
        return f"{self.severity:>7}  {self.message}{advice}"


def ok(check: str, message: str) -> Finding:
    """Say that something is as it should be."""
    return Finding("ok", check, message)


def note(check: str, message: str, advice: str = "") -> Finding:
    """Say something that is neither good nor bad."""
    return Finding("note", check, message, advice)


def warning(check: str, message: str, advice: str) -> Finding:
    """Say that something will do harm, or does a little."""
    return Finding("warning", check, message, advice)


def error(check: str, message: str, advice: str) -> Finding:
    """Say that something does not work, or is open to others."""
    return Finding("error", check, message, advice)


def exit_status(findings: Iterable[Finding]) -> int:
    """Give 0 when all is well, 1 for warnings, 2 for errors."""
    return max((_STATUS[finding.severity] for finding in findings), default=0)
