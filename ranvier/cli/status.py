"""``ranvier status``: who is there and how they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ranvier.cli.data_folder import load_config, place_options
from ranvier.cli.server_place import ServerPlace, find_place
from ranvier.cli.up import stops_with_a_sentence
from ranvier.config import Config
from ranvier.processes.service_user import acting_as
from ranvier.wire.members import LIVE, ROLES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PERIOD_S = 1.0
_WIDTH_OF_NO_TERMINAL = 180

Status = dict[str, Any]

_COLUMNS: dict[str, Callable[[Status], str]] = {
    "worker": lambda worker: worker["name"],
    "state": lambda worker: (
        f"silent {worker['heard_s_ago']:.0f}s" if worker.get("silent") else worker["state"]
    ),
    "pid": lambda worker: str(worker["pid"]),
    "roles": lambda worker: "all" if len(worker["roles"]) == len(ROLES) else ",".join(worker["roles"]),
    "version": lambda worker: worker["version"],
    "CPU": lambda worker: f"{worker['load']:.0%}",
    "memory": lambda worker: _size(worker["memory_bytes"]),
    "lag": lambda worker: _number(worker["lag"]),
    "loop": lambda worker: _ms(worker["loop_lag_ms"]),
    "req/s": lambda worker: _number(worker["requests_per_s"]),
    "rooms": lambda worker: _number(worker["rooms"]),
    "commit": lambda worker: _ms(worker["commit_ms"]),
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
@click.pass_context
def status(
    context: click.Context, as_json: bool, watch: bool, data_dir: Path, configs: Sequence[Path]
) -> None:
    """Show the workers of a running server.

    Ends with status 1 when no worker is known to serve, or PostgreSQL or Redis does not answer; "rooms" are
    those active lately, 5000 at most, by the worker that each is placed on. Where `ranvier deploy` was used,
    root needs no options: the server that was deployed is shown.
    """
    place = find_place(context, data_dir, configs)
    config = load_config(place.data_dir, place.configs)
    with stops_with_a_sentence():
        if watch:
            _watch(config, place, as_json)
            return
        found = _read(config, place)
    if as_json:
        click.echo(json.dumps(found))
    else:
        console = _console()
        console.print(_rendered(found, console.width))
    context.exit(0 if _is_well(found) else 1)


def _is_well(found: Status) -> bool:
    """Tell whether somebody serves, and has what that takes."""
    serves = any(it["state"] == LIVE and not it.get("silent") for it in found["workers"])
    stores = [store for store in (found["database"], found["redis"]) if store is not None]
    return serves and all(store["reachable"] for store in stores)


def _watch(config: Config, place: ServerPlace, as_json: bool) -> None:
    """Look again each second, also while nobody answers, for ever."""
    if as_json:
        while True:
            click.echo(json.dumps(_read_or_say(config, place)))
            time.sleep(_PERIOD_S)
    from rich.live import Live  # noqa: PLC0415 (as in ``_console``)

    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = _read_or_say(config, place)
            live.update(_rendered(found, console.width, console.height), refresh=True)
            time.sleep(_PERIOD_S)


def _console() -> Console:
    # Imported here, so that other commands do not wait for it.
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_NO_TERMINAL)


def _read_or_say(config: Config, place: ServerPlace) -> Status:
    """Do as ``_read``; if nothing is there say so, as what was found."""
    try:
        return _read(config, place)
    except click.ClickException as error:
        return {"error": error.message, "workers": []}


def _read(config: Config, place: ServerPlace) -> Status:
    """Ask a worker; where none answers look from outside. Raises ClickException if nothing is there."""
    from ranvier.processes.ask_privately import ask_status, sockets_of  # noqa: PLC0415 (as in ``up``)
    from ranvier.processes.start_error import StartError  # noqa: PLC0415
    from ranvier.processes.status import read_status  # noqa: PLC0415

    data_dir = place.data_dir
    try:
        # PostgreSQL knows a user of the machine by its name, and so the server's, but not root.
        with acting_as(place.user):
            found = ask_status(sockets_of(config, data_dir))
            return found if found is not None else read_status(config, data_dir).to_json()
    except StartError as error:
        raise click.ClickException(
            f"no server answers in {data_dir}; it does not run, or runs with another --data, or as another "
            "user who keeps its sockets to itself"
        ) from error


def _rendered(found: Status, width: int, height: int | None = None) -> RenderableType:
    """Give what a person reads; the ill workers first where ``height`` has no lines for all of them."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if "error" in found:
        return Text(found["error"], style="red")
    lines = [Text(f"{found['server_name']}: {_log_line(found)}")]
    lines += [_store_line("PostgreSQL", found["database"]), _store_line("Redis", found["redis"])]
    if not found["workers"]:
        unknown = not found["redis"]["reachable"]
        said = "nobody answers here, and only Redis knows who else is there" if unknown else "no worker runs"
        lines.append(Text(said, style="red"))
    for worker in found.get("gone", ()):  # a worker of an older release tells of none
        since = _duration(worker["gone_s_ago"])
        lines.append(Text(f"{worker['name']} has been gone for {since}", style="yellow"))
    workers = found["workers"]
    if height is not None and len(lines) + len(workers) + 2 > height:
        workers = sorted(workers, key=lambda it: _style(it) == "green" and it["bus_connected"])
    return Group(*lines, Text(), _table(workers, width))


def _table(workers: Sequence[Status], width: int) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    names = [name for name in _COLUMNS if width >= _WIDE or name not in _NOT_IF_NARROW]
    for name in names:
        justify: Literal["left", "right"] = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=name != "roles", overflow="fold")
    for worker in workers:
        styles = {"state": _style(worker), "redis": "" if worker["bus_connected"] else "red"}
        table.add_row(*(Text(_COLUMNS[name](worker), style=styles.get(name, "")) for name in names))
    return table


def _style(worker: Status) -> str:
    if worker.get("silent"):
        return "red"
    return "green" if worker["state"] == LIVE else "yellow"


def _log_line(found: Status) -> str:
    log = found["log"]
    if found["answered_by"] is None:
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
