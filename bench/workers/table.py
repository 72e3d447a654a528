"""The figures of the worker form as Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bench.run import ServerResult
from bench.turns import SURE_ERRORS
from bench.workers.goals import evaluate
from bench.workers.scenarios import WorkerFigures

_LEGEND = (
    f"± is one standard error; what is nearer to its bound than {SURE_ERRORS:g} of them is not decided. The "
    "lines without a bound are of events that no worker puts off following, since somebody waits there."
)


def markdown(
    results: Sequence[Sequence[ServerResult]],
    figures: dict[str, WorkerFigures],
    when: str,
    notes: Sequence[str],
) -> str:
    """Return the page: costs by number of workers, then what only workers have, then what failed."""
    lines = ["# Several workers", "", f"Measured {when}, {os.cpu_count()} cores. CPU of everything: ", ""]
    lines[2] += "workers, front or nginx, Redis, PostgreSQL."
    outcomes = evaluate(results, figures)
    if outcomes:
        lines += ["| goal | bound | reached | passed |", "| --- | --- | --- | --- |"]
        lines += [f"| {o.title} | {o.goal} | {o.reached} | {o.verdict} |" for o in outcomes]
        lines += ["", _LEGEND, ""]
    lines += _costs([result for servers in results for result in servers])
    for title, found in figures.items():
        lines += ["", f"## {title}", "", *_of_workers(found)]
    if notes:
        lines += ["", "## Not measured", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _costs(results: Sequence[ServerResult]) -> list[str]:
    lines = [
        "| server | CPU per event, 16 clients (ms) | of it PostgreSQL | events/s | p99 (ms) "
        "| CPU per event, 48 clients (ms) | events/s | p99 (ms) | the 16, and one waits at each worker (ms) "
        "| CPU per delivery (ms) | delivered p99 (ms) | memory PSS (MiB) | others on the machine |",
        f"| --- |{' --: |' * 12}",
    ]
    for result in results:
        attended = result.measurements.get("send_attended")
        of_attended = f"{attended.cpu_ms:.2f}" if attended else "–"
        sent, fanout = result.measurements["send_many_rooms"], result.measurements["fanout"]
        many = result.measurements["send_many_clients"]
        memory = result.memory_after.server_pss + result.memory_after.postgres_pss
        lines.append(
            f"| {result.title} {result.version} | {sent.cpu_ms:.2f} | {sent.postgres_cpu_ms:.2f} "
            f"| {sent.rate:.0f} | {sent.p99_ms:.0f} | {many.cpu_ms:.2f} | {many.rate:.0f} "
            f"| {many.p99_ms:.0f} | {of_attended} | {fanout.cpu_ms:.3f} | {fanout.p99_ms:.0f} "
            f"| {memory:.0f} | {max(sent.others_percent, fanout.others_percent):.0f} % |"
        )
    return lines


def _of_workers(found: WorkerFigures) -> list[str]:
    lines = ["| | |", "| --- | --: |"]
    if found.idle:
        lines.append(f"| idle worker, nothing happens | {found.idle[0].at_rest_ms_per_s:.1f} ms per second |")
    for cost in found.idle:
        who = "worker at which one client waits" if cost.polled else "idle worker"
        lines.append(
            f"| {who}, {cost.wanted_per_s:.0f} events/s wanted, {cost.per_s:.0f} reached "
            f"| {cost.ms_per_event:.4f} ms per event, {cost.percent_of_core:.2f} % of a core; "
            f"{cost.following_ms_per_event:.4f} ms without what it uses at rest |"
        )
    if (sent := found.sent) is not None:
        lines.append(f"| send, local (p50) | {sent.local:.2f} ms |")
        for title, value in (
            ("forwarded: the connection is at another worker, and its client polls on it", sent.forwarded),
            ("the connection was at another worker, and has moved", sent.settled),
            ("the connection moves for this message", sent.moving),
        ):
            lines.append(f"| {title} | {value - sent.local:+.2f} ms |")
        lines.append(f"| send ten times a second, local (p50) | {sent.local_spaced:.2f} ms |")
        spaced = sent.away_spaced - sent.local_spaced
        lines.append(f"| the same from a connection at another worker that stays there | {spaced:+.2f} ms |")
    if (adding := found.adding) is not None:
        for when, request, delivery in (
            ("nothing changes", adding.before_ms, adding.delivered_before_ms),
            ("a worker is added", adding.during_ms, adding.delivered_during_ms),
        ):
            lines.append(f"| under load, {when}: slowest request | {request:.0f} ms |")
            lines.append(f"| under load, {when}: slowest delivery | {delivery:.0f} ms |")
        lines.append(f"| the added worker was live after | {adding.live_after_s:.1f} s |")
        lines.append(f"| requests that it answered until the end | {adding.taken} |")
    if found.failover_s is not None:
        lines.append(f"| a killed worker's rooms take events again after | {found.failover_s:.2f} s |")
    return lines
