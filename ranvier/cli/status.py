"""``ranvier status``: who is there and how they are."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.cli.up import stops_with_a_sentence
from ranvier.wire.members import ROLES

_COLUMNS = ("worker", "state", "pid", "roles", "version", "lag", "load", "memory", "requests", "redis", "up")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it for machines.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@place_options
def status(as_json: bool, watch: bool, data_dir: Path, configs: Sequence[Path]) -> None:
    """Show the workers of a running server."""
    config = load_config(data_dir, configs)
    from ranvier.processes.status import read_status  # noqa: PLC0415 (as in ``up``)

    with stops_with_a_sentence():
        while True:
            found = read_status(config, data_dir).to_json()
            if watch and not as_json:
                click.clear()
            click.echo(json.dumps(found) if as_json else _rendered(found))
            if not watch:
                return
            time.sleep(1)


def _rendered(found: dict[str, Any]) -> str:
    head = found["log"]["head"]
    lines = [
        f"{found['server_name']}: log at {head}" if head is not None else "PostgreSQL cannot be reached",
        "Redis answers" if found["redis"]["reachable"] else f"Redis: {found['redis']['error']}",
        "",
    ]
    rows = [_COLUMNS, *(_row(worker) for worker in found["workers"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if not found["workers"]:
        lines.append("no worker has announced itself")
    return "\n".join(line.rstrip() for line in lines)


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    roles = "all" if len(worker["roles"]) == len(ROLES) else ",".join(worker["roles"])
    return (
        worker["name"],
        worker["state"],
        str(worker["pid"]),
        roles,
        worker["version"],
        "?" if worker["lag"] is None else str(worker["lag"]),
        f"{worker['load']:.0%}",
        f"{worker['memory_bytes'] / 2**20:.0f}M",
        str(worker["requests"]),
        "yes" if worker["bus_connected"] else "no",
        _duration(worker["uptime_s"]),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
