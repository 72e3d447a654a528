"""Does systemd run what it is to run, and does it start it at boot?"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.guard import guarded
from ranvier.deploy.scene import Scene
from ranvier.deploy.settings import Settings
from ranvier.deploy.system_files import service_of

_TARGET: Final = "ranvier.target"
_NGINX: Final = "nginx.service"
_TIMEOUT_S: Final = 10.0
_PROPERTIES: Final = "Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload"

Unit = Mapping[str, str]


def check_units(scene: Scene) -> Iterator[Finding]:
    """Ask systemd, if it runs this machine and `ranvier deploy` was used."""
    if scene.settings is not None and scene.systemctl is not None:
        yield from guarded("systemd's units", _check(scene.settings, scene.systemctl))


def _check(settings: Settings, systemctl: str) -> Iterator[Finding]:
    services = [service_of(name) for name in settings.names]
    units = _ask(systemctl, [_TARGET, *services, settings.redis_service, _NGINX])
    target = units[_TARGET]
    if target["LoadState"] == "not-found":
        yield error("unit", f"systemd knows no {_TARGET}", "run `ranvier deploy`")
        return
    if target["UnitFileState"] != "enabled":
        yield warning("unit-boot", f"{_TARGET} is not started at boot", f"systemctl enable {_TARGET}")
    for service in services:
        yield from _service(service, units[service])
    nginx = units[_NGINX]
    # Where it is not enabled, something else may be the web server.
    if nginx["UnitFileState"] == "enabled" and nginx["ActiveState"] != "active":
        yield error(
            "unit",
            f"{_NGINX} does not run ({_state(nginx)}): no client reaches the server",
            f"nginx -t, then systemctl start {_NGINX}",
        )
    stale = [name for name, unit in units.items() if unit.get("NeedDaemonReload") == "yes"]
    if stale:
        yield warning(
            "unit-changed",
            f"systemd has not read the files of {', '.join(stale)} since they were changed",
            f"systemctl daemon-reload, then systemctl restart {' '.join(stale)}",
        )


def runs_nginx(systemctl: str) -> bool:
    """Tell whether nginx runs. Raises ``OSError``, ``ValueError``."""
    return _ask(systemctl, [_NGINX])[_NGINX]["ActiveState"] in ("active", "reloading")


def _service(name: str, unit: Unit) -> Iterator[Finding]:
    look = f"journalctl -u {name}, and systemctl start {name}"
    if unit["LoadState"] != "loaded":
        yield error("unit", f"systemd cannot use {name} ({unit['LoadState']})", "run `ranvier deploy`")
    elif unit["ActiveState"] == "active":
        yield ok("unit", f"{name} runs")
    elif unit["ActiveState"] in ("activating", "reloading") and unit["SubState"] != "auto-restart":
        yield note("unit", f"{name} is about to run ({_state(unit)})")
    else:
        yield error("unit", f"{name} does not run ({_state(unit)})", look)


def _state(unit: Unit) -> str:
    return f"{unit['ActiveState']}, {unit['SubState']}"


def _ask(systemctl: str, names: Sequence[str]) -> dict[str, Unit]:
    """Give what systemd says of each unit (systemctl(1), "show"). Raises ``OSError``, ``ValueError``."""
    done = subprocess.run(
        [systemctl, "show", f"--property={_PROPERTIES}", *names],
        check=False,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    blocks = [block for block in done.stdout.split("\n\n") if block.strip()]
    if done.returncode or len(blocks) != len(names):
        raise OSError(f"systemctl does not tell: {done.stderr.strip() or done.stdout.strip()}")
    # In the order of the names: an alias is shown under the name that it stands for.
    pairs = ([line.partition("=") for line in block.strip().splitlines()] for block in blocks)
    return {name: {key: value for key, _, value in pair} for name, pair in zip(names, pairs, strict=True)}
