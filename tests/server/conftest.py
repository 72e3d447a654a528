"""The whole server, one for the session (tests use rooms and users of their own) or one for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.postgres import private_folder
from tests.server.http_client import HttpClient
from tests.server.process import ServerProcess


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[ServerProcess]:
    """Give a server that runs for the whole session."""
    with private_folder() as folder:
        process = ServerProcess(folder)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@pytest.fixture
async def own_server() -> AsyncIterator[ServerProcess]:
    """Give a server of the test's own, not started yet."""
    with private_folder() as folder:
        process = ServerProcess(folder)
        try:
            yield process
        finally:
            await process.stop()


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[HttpClient]:
    """Give a client that is not logged in."""
    async with HttpClient(server.url) as made:
        yield made


@pytest.fixture
async def users(server: ServerProcess) -> AsyncIterator[list[HttpClient]]:
    """Give three new users, each with a device."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(HttpClient(server.url)) for _ in range(3)]
        yield [await user.register() for user in made]
