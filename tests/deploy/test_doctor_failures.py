"""``ranvier doctor`` where it cannot look at something: that is told, and the rest is examined."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ranvier.cli.main import main
from ranvier.config import load
from ranvier.config.database import RedisConfig
from ranvier.config.generate import signing_key_file
from ranvier.deploy.actions import DeployError
from ranvier.deploy.doctor import examine_server
from ranvier.deploy.findings import Finding
from ranvier.deploy.record import Record
from ranvier.deploy.settings import Settings
from ranvier.processes.service_user import acting_as, named_user
from ranvier.processes.start_error import StartError
from ranvier.processes.surroundings import HiddenError, find_redis, telling_surroundings
from tests.deploy.examined_server import Server
from tests.postgres import private_folder
from tests.redis import private_redis
from tests.server.process import free_port

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

YAML = "server_name: example.org\nlisteners: []\n"


def examine(*options: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Run the doctor as a machine does, and give its status and its findings."""
    result = CliRunner().invoke(main, ["doctor", "--json", *map(str, options)])
    findings = json.loads(result.output)["findings"]
    return result.exit_code, findings


@pytest.fixture
def data() -> Iterator[Path]:
    """Give the data folder of a server of another user."""
    user = named_user("daemon")
    assert user is not None
    with private_folder() as folder:
        folder.chmod(0o755)
        (folder / "homeserver.yaml").write_text(YAML)
        signing_key_file(folder / "signing.key").write()
        if os.geteuid() == 0:
            os.chown(folder, user.pw_uid, user.pw_gid)
        yield folder


def test_a_record_that_cannot_be_read_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitoring script would get words that it cannot read, and take the status for a warning."""

    def fail(target: object) -> Record:
        raise DeployError("deploy.json cannot be read")

    monkeypatch.setattr("ranvier.deploy.doctor.read_record", fail)
    status, findings = examine()
    assert status == 2
    assert [finding["check"] for finding in findings] == ["deployment"]


def test_a_configuration_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    """A monitoring script would get words that it cannot read."""
    status, findings = examine("--config-path", tmp_path / "absent.yaml", "--data", tmp_path)
    assert status == 2
    assert "absent.yaml" in findings[0]["message"]


@as_root
def test_a_configuration_folder_that_is_closed_is_a_finding(data: Path) -> None:
    """An administrator would see a traceback."""
    (data / "conf.d").mkdir(mode=0o700)
    files = ("--config-path", data / "homeserver.yaml", "--config-path", data / "conf.d")
    status, findings = examine(*files, "--data", data)
    assert status == 2
    assert "Permission denied" in findings[0]["message"]
    assert "let the server's user" in findings[0]["advice"]


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o711])
def test_root_is_told_what_its_servers_user_may_not_open(data: Path, mode: int) -> None:
    """Root would be told to run this as root, or to correct a line of a file without any fault."""
    (data / "files").mkdir(mode=mode)
    (data / "files/homeserver.yaml").write_text(YAML)
    (data / "files/homeserver.yaml").chmod(0o600)
    status, findings = examine("--config-path", data / "files/homeserver.yaml", "--data", data)
    assert status == 2
    assert "Permission denied" in findings[0]["message"]
    assert "let the server's user" in findings[0]["advice"]


def deployed(data: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the doctor find a deployment in a folder."""
    settings = Settings("example.org", "example.org", workers=("w1",), config_dir=data, data_dir=data)
    for name in ("workers", "conf.d"):
        (data / name).mkdir()
    (data / "workers/w1.yaml").write_text("worker_name: w1\nworker_listeners: []\n")
    (data / "conf.d/log.yaml").write_text("log_level: INFO\n")
    settings = replace(settings, socket_dir=data / "run", nginx_dir=data, **changes)
    monkeypatch.setattr("ranvier.deploy.doctor.read_record", lambda target: Record(settings))


@as_root
def test_a_mistake_in_a_file_of_all_workers_hides_nothing_else(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator would mend one line after the other, and find each other fault only then."""
    deployed(data, monkeypatch, web_user="nobody-of-this-name")
    monkeypatch.setattr("ranvier.deploy.doctor._HTTP", ("127.0.0.1", free_port()))
    (data / "conf.d/log.yaml").write_text("log_level: LOUD\n")
    status, findings = examine()
    assert status == 2
    assert {"config", "user-missing", "socket-folder", "proxy", "public"} <= {it["check"] for it in findings}
    assert [it["advice"] for it in findings if it["check"] == "config"] == ["correct this line"]


@pytest.mark.parametrize(
    ("record", "advice"),
    [(Record(begun={"/etc/a": ("mark",)}), "run it again"), (Record(), "run `ranvier deploy`, or")],
)
def test_a_deployment_that_did_not_come_to_its_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, advice: str
) -> None:
    """An administrator would be told to correct a line of a file that nobody wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ranvier.deploy.doctor.read_record", lambda target: record)
    status, (finding,) = examine()
    assert status == 2
    assert finding["advice"].startswith(advice)


@as_root
async def test_a_check_that_fails_does_not_keep_others_from_being_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong besides would not be found until the first fault is mended."""

    def fail(*arguments: object) -> Iterator[Finding]:
        yield from ()
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("ranvier.deploy.check_config._signing_key", fail)
    monkeypatch.setattr("ranvier.deploy.check_redis.check_clock", fail)
    found = await server.findings()
    failed = [it for it in found if it.check == "examination"]
    assert [it.severity for it in failed] == ["error"] * 2
    assert all("by zero" in it.message for it in failed)
    assert {"socket-folder", "redis", "database", "worker", "answer"} <= {it.check for it in found}


@as_root
def test_a_server_that_is_hidden_from_a_user_is_said_to_be(data: Path) -> None:
    """A user who is neither root nor the server's would be told that nothing is wrong, or that it is down."""
    owner, other = named_user("daemon"), named_user("nobody")
    with acting_as(owner):
        (data / "run").mkdir(mode=0o700)
        (data / "postgres").mkdir(mode=0o700)
        (data / "postgres/lock").touch()
    with acting_as(other):
        found = list(examine_server([], [], data))
    checks = {it.check: it for it in found}
    assert checks["server-hidden"].severity == "error"
    assert "root" in checks["server-hidden"].advice
    assert "database-down" not in checks


@as_root
async def test_root_sees_what_another_users_server_runs(data: Path) -> None:
    """Root would not learn that the Redis of a running server is ill."""
    owner = named_user("daemon")
    async with private_redis() as redis:
        path = redis.config.path
        assert path is not None
        path.parent.chmod(0o711)
        path.chmod(0o777)
        with ExitStack() as stack:
            with acting_as(owner):
                stack.enter_context(telling_surroundings(data, "", redis.config))
            with acting_as(named_user("nobody")), pytest.raises(HiddenError):
                find_redis(load([data / "homeserver.yaml"]), data)
            _, findings = await asyncio.to_thread(examine, "--data", data)
    checks = {it["check"]: it["severity"] for it in findings}
    assert checks["redis"] == "ok"
    assert "server-hidden" not in checks


@as_root
def test_looking_for_a_server_makes_nothing(data: Path) -> None:
    """A folder of root's would keep the server's user from starting it."""
    with pytest.raises(StartError):
        find_redis(load([data / "homeserver.yaml"]), data)
    assert not (data / "run").exists()


def test_a_folder_that_somebody_else_made_is_not_believed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user of the machine could have workers connect to a Redis and a database of their own."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    deep = data / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o777)
    with telling_surroundings(deep, "", RedisConfig(path=Path("/evil.sock"))):
        (folder,) = tmp_path.iterdir()
        os.chown(folder, 12345, -1)
        with pytest.raises(HiddenError):
            find_redis(load([data / "homeserver.yaml"]), deep)


@as_root
def test_workers_that_were_removed_are_not_missed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a worker was removed the doctor would say for ever that it does not run."""
    deployed(data, monkeypatch)
    (data / "workers/w2.yaml").write_text("worker_name: w2\n")
    _, findings = examine()
    assert [it["check"] for it in findings if "w2" in it["message"]] == ["left-over"]
    assert [it["check"] for it in examine("--data", data)[1] if "w2" in it["message"]] == []
