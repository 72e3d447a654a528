"""A worker that knows of no other worker, and of which no other knows, with the database of them all."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp

from ranvier.processes.postgres import running_dsn
from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.server.http_client import HttpClient

_START_WITHIN_S = 30.0


@asynccontextmanager
async def lone_worker(cluster: ClusterProcess) -> AsyncIterator[Path]:
    """Run it and give its socket. It has no Redis, so it writes into every room itself."""
    socket, config = _configure(cluster)
    data = cluster.folder / "alone"
    with (cluster.folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ranvier.app.worker", "--data", str(data)),
                *("--config-path", str(cluster.folder / "homeserver.yaml"), "--config-path", str(config)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        async with asyncio.timeout(_START_WITHIN_S), HoppingClient([socket]) as client:
            while not await _is_up(client):
                assert process.poll() is None, "the lone worker ended"
                await asyncio.sleep(0.05)
        yield socket
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def _is_up(client: HttpClient) -> bool:
    try:
        await client.get("/versions")
    except (aiohttp.ClientError, ConnectionError):
        return False
    return True


def _configure(cluster: ClusterProcess) -> tuple[Path, Path]:
    dsn = running_dsn(cluster.folder / "data")
    assert dsn is not None
    where = urlsplit(dsn)
    query = parse_qs(where.query)
    socket, config = cluster.folder / "alone.sock", cluster.folder / "alone.yaml"
    settings = {
        "worker_name": "alone",
        "worker_listeners": [
            {"type": "http", "path": str(socket), "resources": [{"names": ["client", "health", "metrics"]}]}
        ],
        "database": {
            "name": "psycopg2",
            "args": {
                "user": where.username,
                "database": where.path.lstrip("/"),
                "host": query["host"][0],
                "port": int(query["port"][0]),
            },
        },
        "redis": {"enabled": True, "path": str(cluster.folder / "nobody.sock")},
        "signing_key_path": str(next((cluster.folder / "data").glob("*signing*key*"))),
    }
    config.write_text(json.dumps(settings))
    return socket, config
