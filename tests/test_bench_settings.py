"""The bench compares servers on the same PostgreSQL."""

from __future__ import annotations

from bench.postgres import SETTINGS
from ranvier.processes.postgres import PRIVATE_SETTINGS
from ranvier.processes.postgres import SETTINGS as OURS


def test_both_servers_have_the_same_postgresql() -> None:
    """Published figures would compare two settings of PostgreSQL, and not two servers."""
    ours = {**OURS, **PRIVATE_SETTINGS}
    assert {name: ours[name] for name in SETTINGS} == SETTINGS
    apart = {name for name in ours.keys() - SETTINGS.keys() if not name.startswith(("log", "lc_"))}
    assert apart <= {"timezone", "unix_socket_permissions"}
