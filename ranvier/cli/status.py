"""``ranvier status``: who is there and how they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.cli.up import stops_with_a_sentence
from ranvier.config import Config
from ranvier.wire.members import ROLES

if TYPE_CHECKING:
    from rich.console import RenderableType

_PERIOD_S = 1.0
_WIDTH_OF_NO_TERMINAL = 180

Status = dict[str, Any]

_COLUMNS: dict[str, Callable[[Status], str]] = {
    "worker": lambda worker: worker["name"],
    "state": lambda worker: worker["state"],
    "pid": lambda worker: str(worker["pid"]),
    "roles": lambda worker: "all" if len(worker["roles"]) == len(ROLES) else ",".join(worker["roles"]),
    "version": lambda worker: worker["version"],
    "CPU": lambda worker: f"{worker['load']:.0%}",
    "memory": lambda worker: _size(worker["memory_bytes"]),
    "lag": lambda worker: _number(worker["lag"]),
    "loop": lambda worker: _ms(worker.get("loop_lag_ms")),
    "req/s": lambda worker: _number(worker.get("requests_per_s")),
    "rooms": lambda worker: _number(worker.get("rooms")),
    "commit": lambda worker: _ms(worker.get("commit_ms")),
    "redis": lambda worker: "yes" if worker["bus_connected"] else "no",
    "up": lambda worker: _duration(worker["uptime_s"]),
}
_NOT_IF_NARROW = {"roles", "version", "memory", "loop", "commit"}
_WIDE = 105
_RIGHT = {"pid", "CPU", "memory", "lag", "loop", "req/s", "rooms", "commit", "up"}


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print it for machines; with --watch one line a second."
)
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@place_options
def status(as_json: bool, watch: bool, data_dir: Path, configs: Sequence[Path]) -> None:
    """Show the workers of a running server."""
    config = load_config(data_dir, configs)
    with stops_with_a_sentence():
        if as_json:
            _print_json(config, data_dir, watch)
        else:
            _print_table(config, data_dir, watch)


def _print_json(config: Config, data_dir: Path, watch: bool) -> None:
    while True:
        click.echo(json.dumps(_read(config, data_dir)))
        if not watch:
            return
        time.sleep(_PERIOD_S)


def _print_table(config: Config, data_dir: Path, watch: bool) -> None:
    # Imported here, so that other commands do not wait for it.
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_NO_TERMINAL)
    found = _read(config, data_dir)
    if not watch:
        console.print(_rendered(found, console.width))
        return
    with Live(_rendered(found, console.width), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_PERIOD_S)
            live.update(_rendered(_read(config, data_dir), console.width), refresh=True)


def _read(config: Config, data_dir: Path) -> Status:
    """Ask a worker; where none answers look from outside. Raises ClickException if nothing is there."""
    from ranvier.processes.ask_privately import ask_status, sockets_of  # noqa: PLC0415 (as in ``up``)
    from ranvier.processes.start_error import StartError  # noqa: PLC0415
    from ranvier.processes.status import read_status  # noqa: PLC0415

    found = ask_status(sockets_of(config, data_dir))
    if found is not None:
        return found
    try:
        return read_status(config, data_dir).to_json()
    except StartError as error:
        raise click.ClickException(
            f"no server answers in {data_dir}; it does not run, or runs with another --data, or as another "
            "user who keeps its sockets to itself"
        ) from error


def _rendered(found: Status, width: int) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    names = [name for name in _COLUMNS if width >= _WIDE or name not in _NOT_IF_NARROW]
    for name in names:
        justify: Literal["left", "right"] = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=name != "roles", overflow="fold")
    for worker in found["workers"]:
        styles = {
            "state": "green" if worker["state"] == "live" else "yellow",
            "redis": "" if worker["bus_connected"] else "red",
        }
        table.add_row(*(Text(_COLUMNS[name](worker), style=styles.get(name, "")) for name in names))
    lines = [Text(f"{found['server_name']}: {_log_line(found)}")]
    lines += [_store_line("PostgreSQL", found["database"]), _store_line("Redis", found["redis"])]
    if not found["workers"]:
        lines.append(Text("no worker has announced itself", style="red"))
    return Group(*lines, Text(), table)


def _log_line(found: Status) -> str:
    log = found["log"]
    if "rows_per_s" not in log:
        return f"log at {_number(log['head'])}; no worker answers, so this is what they last announced"
    return (
        f"log at {log['head']:,}, {_number(log['rows_per_s'])} rows/s in {_number(log['commits_per_s'])} "
        f"commits/s, commit {_ms(log['commit_ms'])}, seen after {_ms(log['delivery_ms'])}"
    )


def _store_line(name: str, store: Status | None) -> Any:
    from rich.text import Text  # noqa: PLC0415

    if store is None:
        return Text(f"{name}: not needed by one process")
    if not store["reachable"]:
        why = store.get("error")
        return Text(f"{name}: not reachable{f' ({why})' if why else ''}", style="red")
    parts = [f"{name}: reachable"]
    if "version" in store:
        parts.append(store["version"])
    for key in ("size_bytes", "memory_bytes"):
        if store.get(key) is not None:
            parts.append(_size(store[key]))
    for key in ("connections", "clients"):
        if key in store:
            parts.append(f"{store[key]} {key}")
    return Text(", ".join(parts))


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{_number(value)} ms"


def _size(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
