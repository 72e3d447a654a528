"""Workers and the log as people and their scripts are told of them, by a worker or from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ranvier.cluster.members import FRESH_S
from ranvier.wire.members import Member


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Give what sorts names as people do: ``worker2`` before ``worker10``."""
    pieces = re.split(r"([0-9]+)", name)
    return [(0, int(it), "") if it.isdecimal() else (1, 0, it) for it in pieces if it]


def is_silent(heard_s_ago: float | None) -> bool:
    """Tell whether a worker has not been heard of for too long; None where nobody knows."""
    return heard_s_ago is not None and heard_s_ago >= FRESH_S


def describe_worker(
    member: Member,
    *,
    now_ms: int,
    heard_s_ago: float | None,
    lag: int | None,
    takes_rooms: bool,
    rooms: int | None,
    actions: Sequence[str],
) -> dict[str, Any]:
    """Give what is known of a worker. None stands for what nobody knows.

    ``lag`` counts rows of the log that it has not followed, ``takes_rooms`` tells whether rooms are placed on
    it, and ``rooms`` how many of those active lately are.
    """
    figures = member.figures
    return {
        "name": member.name,
        "pid": member.pid,
        "host": member.host,
        "address": member.address,
        "state": member.state,
        "heard_s_ago": heard_s_ago,
        "silent": is_silent(heard_s_ago),
        "roles": member.roles,
        "version": member.version,
        "started_ts": member.started_ts,
        "uptime_s": round((now_ms - member.started_ts) / 1000, 1),
        "beat": member.beat,
        "load": member.load,
        "memory_bytes": member.memory_bytes,
        "pos": member.pos,
        "lag": lag,
        "loop_lag_ms": figures.loop_lag_ms,
        "requests": member.requests,
        "requests_per_s": figures.requests_per_s,
        "in_flight": figures.in_flight,
        "sync_waiting": figures.sync_waiting,
        "takes_rooms": takes_rooms,
        "rooms": rooms,
        "rooms_held": figures.rooms_held,
        "commits_per_s": figures.commits_per_s,
        "commit_ms": figures.commit_ms,
        "delivery_ms": figures.delivery_ms,
        "queued_writes": figures.queued_writes,
        "database_connections": figures.database_used + figures.database_idle,
        "database_reachable": figures.database_reachable,
        "bus_connected": member.bus_connected,
        "actions": actions,
    }


def describe_log(head: int | None, rows_per_s: float | None, members: Sequence[Member]) -> dict[str, Any]:
    """Give the pace of the log and what it takes, by the figures of ``members``."""
    figures = [member.figures for member in members]
    return {
        "head": head,
        "rows_per_s": rows_per_s,
        "commits_per_s": round(sum(it.commits_per_s for it in figures), 1),
        "commit_ms": max((it.commit_ms for it in figures), default=None),
        "delivery_ms": max((it.delivery_ms for it in figures), default=None),
        # What one worker passes on to another is one request.
        "requests_per_s": round(sum(it.requests_per_s - it.forwarded_per_s for it in figures), 1),
    }
