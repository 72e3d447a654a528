"""Fixtures for the real clients: a Node process, a maker of nio devices, names that are not taken."""

import fcntl
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.homeserver import Homeserver
from tests.clients.js_client import JS_FOLDER, JsDriver, js_driver
from tests.clients.nio_client import NioDevice
from tests.postgres import private_folder
from tests.server.process import ServerProcess

Name = Callable[[str], str]
MakeNio = Callable[[str], Awaitable[NioDevice]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def homeserver() -> AsyncIterator[Homeserver]:
    """Ranvier, one server for all of these tests."""
    with private_folder() as folder:
        process = ServerProcess(folder)
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def forgetful_homeserver() -> AsyncIterator[Homeserver]:
    """Ranvier with so short a tail that almost every sync is answered from the database."""
    with private_folder() as folder:
        process = ServerProcess(folder, {"tail": {"rows": 20}})
        try:
            await process.start()
            yield process
        finally:
            await process.stop()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the pinned JavaScript packages once; unchanged ones are kept."""
    installed = JS_FOLDER / "node_modules"
    stamp, wanted = installed / ".package-lock.json", JS_FOLDER / "package-lock.json"
    with wanted.open() as lock:
        # Tests of another process may need them at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.stat().st_mtime < wanted.stat().st_mtime:
            npm = shutil.which("npm")
            assert npm is not None, "Node and npm are needed for the tests with matrix-js-sdk"
            subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=JS_FOLDER, check=True, timeout=300)
    return installed


@pytest_asyncio.fixture
async def js(node_modules: Path) -> AsyncIterator[JsDriver]:
    """A Node process with matrix-js-sdk."""
    async with js_driver() as driver:
        yield driver


@pytest.fixture
def name() -> Name:
    """Make localparts that no other test has."""
    suffix = secrets.token_hex(4)
    return lambda stem: f"{stem}-{suffix}"


@pytest_asyncio.fixture
async def nio(homeserver: Homeserver, tmp_path: Path, name: Name) -> AsyncIterator[MakeNio]:
    """Register and start nio devices; they are closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(stem: str) -> NioDevice:
            folder = tmp_path / stem
            folder.mkdir()
            device = await NioDevice.register(homeserver, folder, name(stem))
            stack.push_async_callback(device.close)
            await device.start()
            return device

        yield make
