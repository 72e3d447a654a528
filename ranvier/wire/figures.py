"""What a worker counts of itself, once a second, for people who look at the cluster."""

from __future__ import annotations

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The last second of one process.

    ``behind_rows``: rows of the log that are committed and not in its memory. ``loop_lag_ms``: how late its
    event loop came to what was due, at worst. ``forwarded_per_s``: of its requests, those that other workers
    passed on. ``rows_per_s``: the pace of the log as followed here. ``commits_per_s`` and ``commit_ms``
    (mean) are of its own commits; ``delivery_ms`` is how old events of this server were, on average, when
    they were in its memory. What there was none of takes 0 ms.
    """

    behind_rows: int = 0
    loop_lag_ms: float = 0.0
    requests_per_s: float = 0.0
    forwarded_per_s: float = 0.0
    in_flight: int = 0
    rows_per_s: float = 0.0
    commits_per_s: float = 0.0
    commit_ms: float = 0.0
    delivery_ms: float = 0.0
    queued_writes: int = 0
    rooms_held: int = 0
    sync_waiting: int = 0
    database_used: int = 0
    database_idle: int = 0
    database_reachable: bool = True
