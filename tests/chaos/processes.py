"""What the kernel tells of processes, and of the connections that they hold."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

_CREDENTIALS = struct.Struct("3i")


def command_of(pid: int) -> bytes:
    """Give the command line of a process; nothing if it is gone or about to be."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def children(pid: int, command: bytes) -> list[int]:
    """Give those that a process has started by a command in which this stands."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in map(int, found) if command in command_of(child)]


def started(pid: int) -> int:
    """Give when a process was started, in ticks since the machine was (source: proc(5), ``starttime``)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Tell whether a process stands still (or is gone)."""
    fields = _stat(pid)
    return not fields or fields[0] == "T"


def catches(pid: int, signum: int) -> bool:
    """Tell whether a process does something of its own at a signal (source: proc(5), ``SigCgt``)."""
    try:
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(lines["SigCgt"], 16) >> (signum - 1) & 1)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def client_ports(pid: int) -> frozenset[int]:
    """Give the ports of those whose TCP connections a process holds (source: proc(5), ``/proc/net/tcp``)."""
    inodes = _socket_inodes(pid)
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    peers = {int(line[2].rpartition(":")[2], 16) for line in lines if line[9] in inodes}
    return frozenset(peers - {0})  # what listens has no peer


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:  # closed meanwhile
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()  # it is gone, or about to be
    return found


def peer_of(sock: Any) -> int:
    """Give the process that a UNIX socket is connected to: the one that listened there."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid


def listener_at(path: Path) -> int:
    """Give the process that listens on a UNIX socket; 0 if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except OSError:
            return 0
        return peer_of(connection)
