"""What an administrator does beside a running server: run commands, read metrics and the log."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess

PASSWORD = "a long password"


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and all that it said."""

    status: int
    output: str


async def ranvier(*arguments: str | Path) -> Outcome:
    """Run a command that ends by itself."""
    async with command(*arguments) as process:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return Outcome(process.returncode, output.decode())


@asynccontextmanager
async def command(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Give a running command, ended afterwards if it did not end by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ranvier.cli",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


def options(server: ServerProcess) -> tuple[str, str, str, str]:
    """Give the options that a command finds the server's data and configuration by."""
    return "--data", str(server.folder / "data"), "--config", str(server.folder / "homeserver.yaml")


async def metrics(url: str) -> dict[str, float]:
    """Read ``/metrics`` as Prometheus does; the samples of one name are added up over their labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        assert response.status == 200, response.status
        text = await response.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


async def until_metric(server: ServerProcess, name: str, at_least: float) -> None:
    """Wait until a metric has grown to a value."""
    async with asyncio.timeout(20):
        while (await metrics(server.url)).get(name, 0) < at_least:
            await asyncio.sleep(0.02)


async def user_of(server: ServerProcess, name: str) -> HttpClient:
    """Register a user."""
    return await HttpClient(server.url).register(name, PASSWORD)


def database_settings(dsn: str) -> dict[str, Any]:
    """Give the ``database`` section for a DSN of a UNIX socket."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    return {
        "name": "psycopg2",
        "args": {
            "user": parts.username,
            "host": query["host"][0],
            "port": int(query["port"][0]),
            "dbname": parts.path.removeprefix("/"),
        },
    }
