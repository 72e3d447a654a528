"""Servers of several workers: one for the session, where tests use users of their own, or one for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.postgres import private_folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[ClusterProcess]:
    """Give a server of three workers that runs for the whole session."""
    with private_folder() as folder:
        process = ClusterProcess(folder, 3)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@pytest.fixture
async def own_cluster() -> AsyncIterator[ClusterProcess]:
    """Give a server of four workers of the test's own, started. All write, to get into each other's way."""
    with private_folder() as folder:
        process = ClusterProcess(folder, 4, {"spread_rooms": "always"})
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@pytest.fixture
async def hopper(cluster: ClusterProcess) -> AsyncIterator[Callable[[], HoppingClient]]:
    """Make clients that ask workers at random; they are closed at the end."""
    async with AsyncExitStack() as stack:
        clients: list[HoppingClient] = []

        def make() -> HoppingClient:
            sockets = [cluster.worker_socket(f"worker{number}") for number in (1, 2, 3)]
            client = HoppingClient(sockets, seed=len(clients))
            clients.append(client)
            stack.push_async_callback(client.close)
            return client

        yield make
