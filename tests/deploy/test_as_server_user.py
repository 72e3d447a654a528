"""Commands that root runs for a server of another user, with a PostgreSQL that knows users by their name."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from ranvier.cli.main import main
from ranvier.cli.up import greeting
from ranvier.config import load
from ranvier.config.generate import signing_key_file
from ranvier.deploy.actions import DeployError
from ranvier.deploy.record import Record
from ranvier.deploy.settings import Settings
from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.processes.run_folder import _place, find_run_folder
from ranvier.processes.service_user import acting_as, named_user, user_of
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate
from tests.postgres import private_folder
from tests.redis import private_redis

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

TIMEOUT_S = 120
PEER = "local all all peer\n"
"""What Debian's pg_hba.conf says of connections to the UNIX socket."""


@dataclass(frozen=True)
class Peer:
    """A PostgreSQL that lets in only the user of the machine whose name is the role's."""

    user: pwd.struct_passwd
    socket_folder: Path

    @property
    def yaml(self) -> str:
        """Give the configuration of a server in it."""
        args = f"host: {self.socket_folder}, user: {self.user.pw_name}, dbname: ranvier"
        return f"database: {{name: psycopg2, args: {{{args}}}}}\n"


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """Run such a PostgreSQL, with the schema of a server."""
    with private_folder() as folder:
        postgres = EmbeddedPostgres(folder)
        dsn = asyncio.run(postgres.start())
        try:
            cluster = folder / "postgres/cluster"
            user = pwd.getpwuid(cluster.stat().st_uid)
            asyncio.run(_prepare(dsn, user.pw_name))
            (cluster / "pg_hba.conf").write_text(PEER)
            asyncio.run(_reload(dsn, user))
            yield Peer(user, folder / "postgres/socket")
        finally:
            asyncio.run(postgres.stop())


async def _prepare(dsn: str, role: str) -> None:
    database = Database({"dsn": dsn}, size=1)
    await migrate(database, "example.org")
    await database.execute(f'CREATE ROLE "{role}" LOGIN SUPERUSER')
    await database.close()


async def _reload(dsn: str, user: pwd.struct_passwd) -> None:
    """Have it read its file, and wait until it goes by it."""
    admin = await asyncpg.connect(dsn)
    await admin.execute("SELECT pg_reload_conf()")
    await admin.close()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await (await asyncpg.connect(dsn)).close()
            except asyncpg.InvalidAuthorizationSpecificationError:
                return
            await asyncio.sleep(0.05)


@pytest.fixture
def data(peer: Peer) -> Iterator[Path]:
    """Give the data folder of a server, which is another user's."""
    with private_folder() as folder:
        (folder / "homeserver.yaml").write_text(f"server_name: example.org\nlisteners: []\n{peer.yaml}")
        signing_key_file(folder / "signing.key").write()
        for path in (folder, *folder.iterdir()):
            os.chown(path, peer.user.pw_uid, peer.user.pw_gid)
        yield folder


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as root."""
    return subprocess.run(
        [sys.executable, "-m", "ranvier.cli", *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def examine(data: Path) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Run the doctor as root and give its status, and its findings by their check."""
    done = run("doctor", "--data", data, "--json")
    findings: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


def test_root_is_let_in_as_the_user_of_the_server(data: Path) -> None:
    """The doctor would say of every server that was deployed on Debian that its database is down."""
    status, findings = examine(data)
    assert status == 0, [it for them in findings.values() for it in them if it["severity"] == "error"]
    assert findings["database"][0]["severity"] == "ok"
    assert findings["signing-key"][0]["severity"] == "ok"
    assert findings["alone"][0]["severity"] == "note"


def test_what_the_server_may_not_read_is_found(data: Path) -> None:
    """A server that does not start would be said to be well, as root may read everything."""
    os.chown(data / "signing.key", 0, 0)
    (data / "signing.key").chmod(0o600)
    status, findings = examine(data)
    assert status == 2
    assert "may not read" in findings["signing-key"][0]["message"]
    assert str(data / "signing.key") in findings["signing-key"][0]["advice"]
    os.chown(data / "homeserver.yaml", 0, 0)
    (data / "homeserver.yaml").chmod(0o600)
    status, findings = examine(data)
    assert status == 2
    assert "Permission denied" in findings["config"][0]["message"]


def test_a_data_folder_that_the_server_may_not_write_into_is_found(data: Path, peer: Peer) -> None:
    """The server would not start, and nothing would say why."""
    (data / "run").mkdir()
    os.chown(data / "run", peer.user.pw_uid, -1)
    os.chown(data, 0, 0)
    data.chmod(0o755)
    status, findings = examine(data)
    assert status == 2
    assert findings["data-folder"][0]["severity"] == "error"


async def test_a_redis_that_is_closed_to_the_server_is_found(data: Path) -> None:
    """Workers would hear nothing of each other while the doctor says that Redis answers."""
    async with private_redis() as redis:
        path = redis.config.path
        assert path is not None
        path.parent.chmod(0o711)
        yaml = data / "homeserver.yaml"
        yaml.write_text(f"{yaml.read_text()}redis: {{enabled: true, path: {path}}}\n")
        os.chown(path, 0, 0)
        path.chmod(0o700)
        _, findings = await asyncio.to_thread(examine, data)
        assert findings["redis-refused"][0]["severity"] == "error"
        assert "redis-down" not in findings


def test_the_doctor_leaves_nothing_in_the_data_folder(data: Path) -> None:
    """A folder of root's would keep the server from starting."""
    yaml = data / "homeserver.yaml"
    yaml.write_text("server_name: example.org\nlisteners: []\n")
    before = sorted(data.rglob("*"))
    status, findings = examine(data)
    assert status == 2
    assert findings["database-down"][0]["message"] == "PostgreSQL does not run"
    assert sorted(data.rglob("*")) == before


def test_root_makes_accounts_as_the_user_of_the_server(data: Path) -> None:
    """The first administrator of a server that was deployed could not be made."""
    done = run("register-user", "--data", data, "--admin", "--password", "correct horse", "alice")
    assert (done.returncode, done.stdout) == (0, "Made the administrator alice.\n"), done.stderr
    again = run("register-user", "--data", data, "--password", "correct horse", "alice")
    assert "There is a user @alice:example.org already" in again.stderr


def test_root_needs_no_options_where_the_server_was_deployed(
    data: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator would have to type the files of the configuration that `deploy` wrote."""
    settings = Settings(
        "example.org", "example.org", workers=(), user=peer.user.pw_name, config_dir=data, data_dir=data
    )
    (data / "conf.d").mkdir()
    (data / "conf.d/more.yaml").write_text("log_level: INFO\n")
    monkeypatch.setattr("ranvier.cli.server_place.read_record", lambda target: Record(settings))
    done = CliRunner().invoke(main, ["register-user", "--password", "correct horse", "bob"])
    assert (done.exit_code, done.output) == (0, "Made the user bob.\n")
    assert (os.geteuid(), os.getuid()) == (0, 0)


def status_of(data: Path, **changes: str) -> tuple[int, dict[str, Any]]:
    """Let root ask, while no worker answers, after words of the configuration were changed."""
    yaml = data / "homeserver.yaml"
    text = yaml.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    yaml.write_text(f"{text}redis: {{enabled: true, path: {data}/absent.sock}}\n")
    done = run("status", "--json", "--data", data)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_root_sees_the_status_while_no_worker_answers(data: Path) -> None:
    """Just while a server is down, its administrator would see a traceback instead of what is there."""
    status, told = status_of(data)
    assert (status, told["database"]["reachable"]) == (1, True), told
    assert (told["workers"], told["redis"]["reachable"]) == ([], False)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [("user: ", "user: not_", "authentication failed"), ("dbname: ranvier", "dbname: postgres", "log_head")],
)
def test_a_database_that_cannot_be_used_is_part_of_the_status(
    data: Path, old: str, new: str, why: str
) -> None:
    """A wrong password, or tables that were never made, would be a traceback."""
    status, told = status_of(data, **{old: new})
    assert (status, told["database"]["reachable"]) == (1, False)
    assert why in told["database"]["error"]


def test_root_sees_the_status_of_the_server_that_was_deployed(
    data: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator would be told to make a server, in front of one that is down."""
    settings = Settings("example.org", "example.org", workers=(), user=peer.user.pw_name)
    settings = replace(settings, config_dir=data, data_dir=data)
    (data / "conf.d").mkdir()
    (data / "conf.d/redis.yaml").write_text(f"redis: {{enabled: true, path: {data}/absent.sock}}\n")
    monkeypatch.setattr("ranvier.cli.server_place.read_record", lambda target: Record(settings))
    with private_folder() as folder:  # where root once tried `ranvier up`
        monkeypatch.chdir(folder)
        assert CliRunner().invoke(main, ["generate-config"]).exit_code == 0
        tried = greeting(load([folder / "data/homeserver.yaml"]), Path("data"), [])
        assert "register-user --data data --admin" in tried
        done = CliRunner().invoke(main, ["status"])
        monkeypatch.undo()
    assert done.exit_code == 1
    assert "PostgreSQL: reachable" in done.output
    assert (os.geteuid(), os.getuid()) == (0, 0)


def test_another_server_is_shown_although_the_record_is_not_trusted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator would be told to deploy again, who asked for the state of something else."""

    def fail(target: object) -> Record:
        raise DeployError("deploy.json is not trusted")

    monkeypatch.setattr("ranvier.cli.server_place.read_record", fail)
    yaml = data / "homeserver.yaml"
    yaml.write_text(f"{yaml.read_text()}redis: {{enabled: true, path: {data}/absent.sock}}\n")
    assert "PostgreSQL: reachable" in CliRunner().invoke(main, ["status", "--data", str(data)]).output
    monkeypatch.chdir(tmp_path)
    assert "deploy.json is not trusted" in CliRunner().invoke(main, ["status"]).output


@pytest.mark.parametrize("named", ["files", "worker", "data"])
def test_files_of_the_deployed_server_are_looked_at_as_its_user(
    data: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A server that is well would be said to have no database, because root named its files."""
    with private_folder() as folder:
        folder.chmod(0o755)
        settings = Settings("example.org", "example.org", workers=("w1",), user=peer.user.pw_name)
        settings = replace(settings, config_dir=folder, data_dir=data)
        (folder / "homeserver.yaml").write_text(
            f"{(data / 'homeserver.yaml').read_text()}signing_key_path: {data}/signing.key\n"
        )
        (data / "homeserver.yaml").unlink()
        for name in ("workers", "conf.d"):
            (folder / name).mkdir()
        (folder / "workers/w1.yaml").write_text("worker_name: w1\nworker_listeners: []\n")
        (folder / "conf.d/more.yaml").write_text("log_level: INFO\n")
        monkeypatch.setattr("ranvier.deploy.doctor.read_record", lambda target: Record(settings))
        monkeypatch.chdir(folder.parent)
        options = {
            "files": ["--config-path", f"{folder.name}/homeserver.yaml"],
            "worker": ["--worker", folder / "workers/w1.yaml"],
            "data": ["--data", data],
        }[named]
        done = CliRunner().invoke(main, ["doctor", "--json", *map(str, options)])
    found = json.loads(done.output)["findings"]
    checks = {it["check"]: it["severity"] for it in found}
    assert (checks["database"], checks["signing-key"]) == ("ok", "ok"), found
    assert "config" not in checks, found
    assert (os.geteuid(), os.getuid()) == (0, 0)


@pytest.mark.parametrize("kind", ["folder", "link", "stale"])
def test_root_does_not_become_whom_a_folder_in_tmp_belongs_to(
    data: Path, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Any user could have root act as them, and be told by them where the database is."""
    other = named_user("nobody")
    assert other is not None
    deep = data / ("x" * 100)
    deep.mkdir()
    os.chown(deep, peer.user.pw_uid, peer.user.pw_gid)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    theirs, own = _place(deep, peer.user.pw_uid), _place(deep, 0)
    assert theirs.parent == own.parent == tmp_path
    own.mkdir()
    if kind == "folder":
        os.chown(own, other.pw_uid, other.pw_gid)
        theirs.mkdir()
        os.chown(theirs, other.pw_uid, other.pw_gid)
    elif kind == "link":
        own.rmdir()
        theirs.symlink_to(data)
        own.symlink_to(data)
    else:
        theirs.mkdir()
        os.chown(theirs, peer.user.pw_uid, peer.user.pw_gid)
    user = user_of(deep)
    assert user is not None
    assert user.pw_uid == peer.user.pw_uid
    if kind == "stale":
        assert find_run_folder(deep) == theirs
    else:
        with pytest.raises(PermissionError):
            find_run_folder(deep)


def test_another_user_is_let_go_of_again() -> None:
    """What a command does afterwards as root would fail."""
    user = named_user("daemon")
    assert user is not None

    def fail() -> None:
        with acting_as(user):
            assert (os.geteuid(), os.getuid(), os.getegid()) == (user.pw_uid, user.pw_uid, user.pw_gid)
            assert 0 not in os.getgroups()
            Path("/etc/shadow").read_bytes()

    before = os.getresuid(), os.getresgid(), os.getgroups(), os.environ.get("HOME")
    with pytest.raises(PermissionError):
        fail()
    assert (os.getresuid(), os.getresgid(), os.getgroups(), os.environ.get("HOME")) == before
