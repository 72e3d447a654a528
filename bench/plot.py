"""The plot: CPU per operation and latency of each scenario, by server."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.run import ServerResult
from bench.scenarios import SCENARIOS

_COLOURS = {"synapse": "#9aa0a6", "ranvier": "#1f7a5c"}


def draw(servers: list[ServerResult], path: Path) -> None:
    """Write a PNG with each scenario's CPU per operation and median latency, on logarithmic axes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), sharey=True)
    _bars(left, servers, "cpu_ms", "CPU per operation, ms (all processes, with PostgreSQL)")
    _bars(right, servers, "p50_ms", "latency, ms (median)")
    left.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _bars(axes: Axes, servers: list[ServerResult], name: str, title: str) -> None:
    height = 0.8 / max(1, len(servers))
    for place, server in enumerate(servers):
        values = [
            float(getattr(m, name)) if (m := server.measurements.get(scenario.name)) else 0.0
            for scenario in SCENARIOS
        ]
        rows = [row + place * height for row in range(len(SCENARIOS))]
        bars = axes.barh(rows, values, height, label=server.title, color=_COLOURS[server.name])
        labels = [_label(value) for value in values]
        axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    middle = height * (len(servers) - 1) / 2
    axes.set_yticks([row + middle for row in range(len(SCENARIOS))], [s.title for s in SCENARIOS])
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_title(title)


def _label(value: float) -> str:
    """Return three digits or so without an exponent; nothing for a scenario that was not measured."""
    if not value:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
