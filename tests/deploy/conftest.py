"""A folder that stands for a machine's root, and the command run on it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ranvier.cli.main import main
from tests.deploy.examined_server import Server, examined_server

PASSWD = "root:x:0:0::/root:/bin/sh\nredis:x:901:901::/:/bin/false\nwww-data:x:33:33::/:/bin/false\n"
GROUP = "root:x:0:\nredis:x:901:\nwww-data:x:33:\n"
REDIS_CONF = "bind 127.0.0.1 -::1\nport 6379\nsupervised systemd\n"

Deploy = Callable[..., Result]


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Undo what ``doctor`` does to the log of its process, which here is that of all tests."""
    yield
    logging.getLogger("ranvier").setLevel(logging.NOTSET)


@pytest.fixture
async def server(database: str) -> AsyncIterator[Server]:
    """Give a server that is well."""
    async with examined_server(database) as found:
        yield found


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Give the root of a machine with Redis and a web server, and nothing of Ranvier's."""
    (tmp_path / "etc/redis").mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    (tmp_path / "etc/redis/redis.conf").write_text(REDIS_CONF)
    return tmp_path


@pytest.fixture
def deploy(machine: Path) -> Deploy:
    """Give a function that runs ``ranvier deploy`` on the machine."""
    if shutil.which("systemd-sysusers") is None:
        pytest.fail("systemd-sysusers is not installed (Debian: systemd)")

    def run(*options: Any) -> Result:
        return CliRunner().invoke(main, ["deploy", "--root", str(machine), *map(str, options)])

    return run


def files_of(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Give mode, owner, group and content of everything below a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found
