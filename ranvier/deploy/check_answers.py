"""Does each worker answer a request where clients come in?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ranvier.config.listeners import Listener
from ranvier.deploy.findings import Finding, error, ok
from ranvier.deploy.scene import Process, Scene

_TIMEOUT_S: Final = 3.0
_REQUEST: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def check_answers(scene: Scene) -> AsyncIterator[Finding]:
    """Ask every listener of every process how it is, but for those that are closed on purpose."""
    for process in scene.processes:
        if process.name in scene.drained:
            continue
        for listener in process.listeners:
            answers = listener.path is not None or listener.bind_addresses
            if answers and "health" in listener.resources and "replication" not in listener.resources:
                yield await _check(scene, process, listener)


async def _check(scene: Scene, process: Process, listener: Listener) -> Finding:
    where = str(listener.path) if listener.path else f"port {listener.port}"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            said = await _ask(scene, listener)
    except TimeoutError:
        return error(
            "worker-no-answer",
            f"the worker {process.name} took a request at {where} and does not answer",
            f"it is frozen or overloaded: see its log, and restart the worker {process.name}",
        )
    except OSError as failed:
        return error(
            "worker-no-answer",
            f"the worker {process.name} cannot be reached at {where}: {failed}",
            f"see the log of the worker {process.name}, and start it",
        )
    if not said or b" 200 " in said:
        return ok("answer", f"the worker {process.name} answers at {where}")
    return error(
        "worker-not-ready",
        f"the worker {process.name} says at {where} that it is not ready: {said.decode(errors='replace')}",
        "wait until it has started; if it stays so, see its log",
    )


async def _ask(scene: Scene, listener: Listener) -> bytes:
    """Give the first line of the answer; nothing where TLS is spoken and a connection has to do."""
    reader, writer = await connect(scene, listener)
    try:
        if listener.tls:
            return b""
        writer.write(_REQUEST)
        return (await reader.readline()).strip() or b"nothing"
    finally:
        writer.close()


async def connect(scene: Scene, listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to where a worker answers. Raises ``OSError``."""
    if listener.path is not None:
        return await asyncio.open_unix_connection(scene.target.real(listener.path))
    host = listener.bind_addresses[0]
    return await asyncio.open_connection(_ANY.get(host, host), listener.port)
