"""Results as JSON (one file per server, so that one can be measured again alone) and as Markdown tables."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from bench.goals import MOST_GROWTH, Outcome, evaluate, growth
from bench.measure import Measurement
from bench.proc import Memory
from bench.run import Idle, ServerResult
from bench.scenarios import REGISTER_DEFAULT_HASH, SCENARIOS

NAMES = ("synapse", "ranvier")


def save(result: ServerResult, folder: Path, run_id: str) -> None:
    """Write one server's figures in place of earlier ones."""
    path = folder / f"{result.name}.json"
    document = result.as_json() | {"run": run_id, "machine": _machine()}
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def new_run_id() -> str:
    """Return the time of a run, by which its results are told from older ones."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def load(*folders: Path) -> dict[str, tuple[ServerResult, str]]:
    """Return each server's figures from the first folder that has any, and the run that they are from."""
    found: dict[str, tuple[ServerResult, str]] = {}
    for name in NAMES:
        for path in [folder / f"{name}.json" for folder in folders]:
            if path.exists() and name not in found:
                document = orjson.loads(path.read_bytes())
                found[name] = (_result(document), document["run"])
    return found


def _result(document: dict[str, Any]) -> ServerResult:
    return ServerResult(
        name=document["name"],
        title=document["title"],
        version=document["version"],
        measurements=_measurements(document["measurements"]),
        memory_at_rest=Memory(**document["memory_at_rest"]),
        memory_after=Memory(**document["memory_after"]),
        idle=Idle(**document["idle"]),
        seeded_events=document.get("seeded_events", 0),
        after_seed=_measurements(document.get("after_seed", {})),
    )


def _measurements(document: dict[str, Any]) -> dict[str, Measurement]:
    return {name: Measurement(**m) for name, m in document.items()}


def _machine() -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    model = models[0].split(":", 1)[1].strip() if models else platform.machine()
    return f"{len(models)} × {model}, Linux {platform.release().split('-')[0]}"


def markdown(results: dict[str, tuple[ServerResult, str]]) -> str:
    """Return the tables of what `load` returned: goals, scenarios, memory."""
    parts = ["# Ranvier beside the known server", _provenance(results)]
    if set(NAMES) <= set(results):
        parts += ["## Goals", _goals(evaluate(results["ranvier"][0], results["synapse"][0]))]
    servers = [results[name][0] for name in NAMES if name in results]
    parts += ["## Scenarios", _LEGEND, _scenarios(servers), "## At rest", _memory(servers)]
    for server in servers:
        if server.after_seed:
            parts += [
                f"## {server.title} with {server.seeded_events:,} events more in its log",
                _after_seed(server),
            ]
    return "\n\n".join(parts) + "\n"


_LEGEND = (
    "CPU is that of all the server's processes and its PostgreSQL, per operation (in brackets: PostgreSQL's "
    "part). Latency as the client sees it. *Others*: the share of the machine's CPU that neither the server "
    "nor the driver used; where it is high, rates and latencies are those of a busy machine."
)


def _provenance(results: dict[str, tuple[ServerResult, str]]) -> str:
    lines = [f"{result.title} {result.version}, measured {run}." for result, run in results.values()]
    return "\n".join([*lines, "50 users, 20 rooms of 5, one room of 50; PostgreSQL with fsync on for both."])


def _goals(outcomes: list[Outcome]) -> str:
    rows = [[o.title, o.goal, o.reached, o.verdict] for o in outcomes]
    return _table(["goal", "bound", "reached", "passed"], rows)


def _scenarios(servers: list[ServerResult]) -> str:
    rows = []
    for scenario in [*SCENARIOS, REGISTER_DEFAULT_HASH]:
        for server in servers:
            if (m := server.measurements.get(scenario.name)) is not None:
                rows.append([scenario.title, server.title, *_figures(m)])
    head = [
        "scenario",
        "server",
        "CPU ms",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "per second",
        "operations",
        "others",
    ]
    return _table(head, rows)


def _after_seed(server: ServerResult) -> str:
    titles = {scenario.name: scenario.title for scenario in SCENARIOS}
    rows = []
    for outcome in growth(server):
        before, after = server.measurements[outcome.title], server.after_seed[outcome.title]
        figures = [f"{value:.2f}" for value in (before.cpu_ms, after.cpu_ms)]
        latencies = [f"{value:.1f}" for value in (before.p50_ms, after.p50_ms, before.p99_ms, after.p99_ms)]
        rows.append([titles[outcome.title], *figures, outcome.reached, *latencies, outcome.verdict])
    head = ["scenario", "CPU ms", "CPU ms after", "ratio", "p50 ms", "p50 after", "p99 ms", "p99 after"]
    return _table([*head, f"≤ {MOST_GROWTH}×"], rows)


def _figures(m: Measurement) -> list[str]:
    cpu = f"{m.cpu_ms:.2f} ({m.postgres_cpu_ms:.2f})"
    latencies = [f"{value:.1f}" for value in (m.p50_ms, m.p95_ms, m.p99_ms)]
    return [cpu, *latencies, f"{m.rate:.0f}", str(m.operations), f"{m.others_percent:.0f} %"]


def _memory(servers: list[ServerResult]) -> str:
    rows = []
    for server in servers:
        for when, memory in (("at rest", server.memory_at_rest), ("after the run", server.memory_after)):
            figures = [memory.server_rss, memory.server_pss, memory.postgres_pss]
            rows.append([f"memory {when}, MiB", server.title, *(f"{figure:.0f}" for figure in figures)])
        idle = server.idle
        cpu = [f"{idle.server_cpu_ms_per_s:.1f}", "", f"{idle.postgres_cpu_ms_per_s:.1f}"]
        rows.append(["idle CPU, ms per second", server.title, *cpu])
    return _table(["", "server", "server (RSS)", "server (PSS)", "PostgreSQL (PSS)"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
