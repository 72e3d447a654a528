"""What a tree of processes costs, read from /proc: CPU time and memory, PostgreSQL told apart."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True)
class _Process:
    parent: int
    cpu_ms: float


@dataclass(frozen=True)
class Cpu:
    """CPU time in ms since each process began."""

    server_ms: float
    postgres_ms: float

    @property
    def total_ms(self) -> float:
        return self.server_ms + self.postgres_ms

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.server_ms - other.server_ms, self.postgres_ms - other.postgres_ms)


@dataclass(frozen=True)
class Memory:
    """Memory in MiB: RSS counts a shared page in each process, PSS divides it among them."""

    server_rss: float
    server_pss: float
    postgres_pss: float


def _read_stat(pid: int) -> _Process | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold blanks and brackets: what follows the last bracket is regular.
    fields = text[text.rindex(")") + 2 :].split()
    # utime, stime, and the same of children that have ended and been waited for: a PostgreSQL backend that
    # ends between two readings moves from its own line to its postmaster's, and the sum stays right.
    return _Process(parent=int(fields[1]), cpu_ms=sum(map(int, fields[11:15])) * _TICK_MS)


def _all_processes() -> dict[int, _Process]:
    pids = (int(name) for name in os.listdir(_PROC) if name.isdigit())
    return {pid: process for pid in pids if (process := _read_stat(pid)) is not None}


def _descendants(roots: Iterable[int], processes: dict[int, _Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in processes]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


@dataclass(frozen=True)
class ProcessTree:
    """The processes of one server: all below `servers`, with those below `postgres` counted on their own."""

    servers: tuple[int, ...]
    postgres: tuple[int, ...]

    def cpu(self) -> Cpu:
        """Return the CPU time that the tree has used so far, ended children included."""
        processes = _all_processes()
        postgres = _descendants(self.postgres, processes)
        servers = _descendants(self.servers, processes) - postgres
        return Cpu(
            sum(processes[pid].cpu_ms for pid in servers), sum(processes[pid].cpu_ms for pid in postgres)
        )

    def memory(self) -> Memory:
        """Return the memory that the tree holds now."""
        processes = _all_processes()
        postgres = _descendants(self.postgres, processes)
        servers = _descendants(self.servers, processes) - postgres
        return Memory(_rollup(servers, "Rss:"), _rollup(servers, "Pss:"), _rollup(postgres, "Pss:"))


def _rollup(pids: Iterable[int], name: str) -> float:
    """Return the sum of one line of smaps_rollup in MiB; a process that has just ended holds nothing."""
    total_kib = 0
    for pid in pids:
        try:
            lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return total_kib / 1024


def machine_busy_ms() -> float:
    """Return the CPU time in ms that everything on this machine has used."""
    fields = [int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) * _TICK_MS


def own_cpu_ms() -> float:
    """Return the CPU time in ms that the driver itself has used."""
    times = os.times()
    return (times.user + times.system) * 1000
