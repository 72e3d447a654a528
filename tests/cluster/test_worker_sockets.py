"""Where the workers of one machine reach each other, when one follows another of its name."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ranvier.cluster.link import LinkServer
from ranvier.http.listeners import UnixAddress, unix_socket
from ranvier.processes.cluster_parts import ClusterParts, WorkerSockets
from tests.postgres import private_folder


@pytest.fixture
def nothing() -> Any:
    """Stand for the parts that have no part in it."""
    return SimpleNamespace(close=lambda: None)


async def test_a_worker_that_ends_leaves_its_successor_its_socket(nothing: Any) -> None:
    """After a crash of the front, others could not reach a worker that took the place of an old one."""
    with private_folder() as folder:
        address = UnixAddress(folder / "worker1.sock")
        successors: list[socket.socket] = []

        async def leave() -> None:
            """Let the successor come while the old one has its last things to do."""
            successors.append(unix_socket(address))

        async def answer(body: bytes) -> bytes:
            return body

        server = LinkServer(secret="", answer=answer, greet=lambda value: None)
        sockets = WorkerSockets([unix_socket(address)])
        await server.listen(sockets.all[0])
        others = dict.fromkeys(ClusterParts.__dataclass_fields__, nothing)
        members = cast(Any, SimpleNamespace(leave=leave))
        parts = ClusterParts(**{**others, "members": members, "server": server, "sockets": sockets})
        await parts.stop(1.0)
        sockets.close()
        assert address.path.exists()
        successors.pop().close()
