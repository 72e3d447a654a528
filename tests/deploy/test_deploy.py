"""``ranvier deploy`` on a real file system, as root, in a folder that stands for the machine's root."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from ranvier.config import load
from ranvier.deploy.target import Target
from tests.deploy.conftest import Deploy, files_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and groups can be set by root only")

FIRST = ("--server-name", "example.org", "--public-name", "matrix.example.org", "--workers", "2")
RECORD = "etc/ranvier/deploy.json"
FORMER_RECORD = "var/lib/ranvier/deploy.json"


def test_a_dry_run_changes_nothing_and_says_what_the_run_then_does(machine: Path, deploy: Deploy) -> None:
    """An administrator would agree to one thing and get another."""
    before = files_of(machine)
    dry = deploy(*FIRST, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert files_of(machine) == before
    done = deploy(*FIRST)
    assert done.exit_code == 0, done.output
    promised = said(dry.output, "Would ")
    assert promised == said(done.output, "Did ")
    # Every file that is there now was shown, with its whole text unless it is a secret.
    shown = [line[4:] for line in dry.output.splitlines() if line.startswith("  | ")]
    for path, (mode, _, _, content) in files_of(machine).items():
        by_sysusers = path in ("etc/shadow", "etc/gshadow") or path.endswith("-") or ".pwd.lock" in path
        if path in before or by_sysusers:
            continue
        assert any(f"/{path} " in f"{line} " for line in promised), path
        secret = path.endswith(("signing.key", "registration_shared_secret", ".kept.1"))
        if stat.S_ISREG(mode) and not secret and not path.endswith("deploy.json"):
            assert set(content.decode().splitlines()) <= set(shown), path


def said(output: str, word: str) -> list[str]:
    """Give what follows a word at the beginning of lines."""
    return [line.removeprefix(word) for line in output.splitlines() if line.startswith(word)]


def test_a_second_run_changes_nothing(machine: Path, deploy: Deploy) -> None:
    """Running it after an update would restart a server that needs no restart."""
    deploy(*FIRST)
    before = files_of(machine)
    again = deploy()
    assert again.exit_code == 0, again.output
    assert "Nothing to do" in again.output
    assert files_of(machine) == before


def test_the_sockets_folder_has_its_owner_group_and_mode(machine: Path, deploy: Deploy) -> None:
    """The web server could not connect to the workers, or everybody could."""
    deploy(*FIRST)
    target = Target(machine)
    folder = Path("/run/ranvier")
    assert target.rights(folder) == ("ranvier", "ranvier-sockets", 0o2770)
    for user in ("ranvier", "redis", "www-data"):
        assert target.is_member(user, "ranvier-sockets")
    made = machine / "run/ranvier/some.sock"
    made.touch()
    assert made.stat().st_gid == target.gid("ranvier-sockets")
    (machine / "run/ranvier").chmod(0o755)
    assert "from ranvier:ranvier-sockets 0755 to ranvier:ranvier-sockets 2770" in deploy().output
    assert target.rights(folder) == ("ranvier", "ranvier-sockets", 0o2770)


def test_secrets_are_for_the_server_alone_and_stay(machine: Path, deploy: Deploy) -> None:
    """Another user could sign as the server, or an update would give it a new key that nobody trusts."""
    deploy(*FIRST)
    target, path = Target(machine), Path("/etc/ranvier/signing.key")
    key = target.read(path)
    assert target.rights(path) == ("root", "ranvier", 0o640)
    deploy("--workers", 3)
    assert target.read(path) == key


@pytest.mark.parametrize("edit", [None, "enable_registration: true\n", ""])
def test_a_signing_key_that_is_lost_is_not_replaced(machine: Path, deploy: Deploy, edit: str | None) -> None:
    """Other servers would no longer believe this one, though its key lay in a backup."""
    deploy(*FIRST)
    yaml = machine / "etc/ranvier/homeserver.yaml"
    if edit == "":
        yaml.unlink()
    elif edit is not None:
        yaml.write_text(yaml.read_text() + edit)
    (machine / "etc/ranvier/signing.key").unlink()
    before = files_of(machine)
    result = deploy("--workers", 3)
    assert result.exit_code == 1
    assert "/etc/ranvier/signing.key is lost: bring it back from your copy" in result.output
    assert files_of(machine) == before


def test_a_signing_key_elsewhere_needs_no_other(machine: Path, deploy: Deploy) -> None:
    """A server that kept the key of the one before it could not be deployed again."""
    deploy(*FIRST)
    yaml = machine / "etc/ranvier/homeserver.yaml"
    yaml.write_text(yaml.read_text().replace("/etc/ranvier/signing.key", "/etc/matrix/signing.key"))
    (machine / "etc/ranvier/signing.key").unlink()
    result = deploy("--workers", 3)
    assert result.exit_code == 0, result.output
    assert not (machine / "etc/ranvier/signing.key").exists()


@pytest.mark.parametrize("name", ["signing.key", "registration_shared_secret"])
def test_a_secret_that_others_may_read_is_closed_again(machine: Path, deploy: Deploy, name: str) -> None:
    """A key that was copied there could be read by everybody, or not by the server."""
    deploy(*FIRST)
    target, path = Target(machine), Path("/etc/ranvier") / name
    key = target.read(path)
    target.real(path).chmod(0o644)
    os.chown(target.real(path), 901, 0)
    result = deploy()
    assert f"change {path} from redis:root 0644 to root:ranvier 0640" in result.output
    assert target.rights(path) == ("root", "ranvier", 0o640)
    assert target.read(path) == key
    assert "Nothing to do" in deploy().output


def test_systemd_waits_as_long_as_a_worker_may_take_to_finish(machine: Path, deploy: Deploy) -> None:
    """Workers would be killed at each restart, and the requests that they were about to answer be lost."""
    deploy(*FIRST)
    units = [machine / "etc/systemd/system" / name for name in ("ranvier.service", "ranvier-worker@.service")]
    assert all("\nTimeoutStopSec=60s\n" in unit.read_text() for unit in units)
    (machine / "etc/ranvier/conf.d/mine.yaml").write_text("drain_timeout: 2m\n")
    deploy()
    assert all("\nTimeoutStopSec=150s\n" in unit.read_text() for unit in units)
    own = machine / "etc/ranvier/workers/worker2.yaml"
    own.write_text(own.read_text() + "drain_timeout: 5m\n")
    deploy()
    assert all("\nTimeoutStopSec=330s\n" in unit.read_text() for unit in units)
    assert "Nothing to do" in deploy().output


def test_where_clients_look_first_is_told(deploy: Deploy) -> None:
    """Clients would not find the server by the name in its user IDs."""
    assert "https://example.org/.well-known/matrix/client" in deploy(*FIRST).output
    assert ".well-known" not in deploy("--public-name", "example.org").output


def test_every_process_can_read_its_configuration(machine: Path, deploy: Deploy) -> None:
    """The first start would end with an error."""
    names = ("worker2", "2", "1.5", "on", "null", "1_0", "0x1f")
    result = deploy("--server-name", "example.org", "--user", "yes", "--workers", ",".join(names))
    assert result.exit_code == 0, result.output
    folder = machine / "etc/ranvier"
    secret = folder / "registration_shared_secret"
    yaml = folder / "homeserver.yaml"
    yaml.write_text(yaml.read_text().replace("/etc/ranvier", str(folder)))
    for name in ("main", *names):
        files = [] if name == "main" else [folder / f"workers/{name}.yaml"]
        config = load([yaml, folder / "conf.d", *files])
        listeners = config.worker.listeners or config.listeners
        assert [str(listener.path) for listener in listeners] == [f"/run/ranvier/{name}.sock"]
        assert [listener.mode for listener in listeners] == [0o660]
        assert config.worker.name == name
        assert config.database is not None
        assert "yes" in str(config.database.dsn())
        assert not config.warnings
        assert config.registration.shared_secret == secret.read_text().strip()


def test_a_unit_that_was_edited_is_kept_as_a_copy(machine: Path, deploy: Deploy) -> None:
    """An administrator's work would be lost without a word."""
    deploy(*FIRST)
    unit = machine / "etc/systemd/system/ranvier.service"
    edited = unit.read_text() + "# mine\n"
    unit.write_text(edited)
    result = deploy()
    assert "REPLACE /etc/systemd/system/ranvier.service" in result.output
    assert "ranvier.service.kept.1" in result.output
    assert unit.with_name("ranvier.service.kept.1").read_text() == edited
    assert "# mine" not in unit.read_text()
    unit.write_text(edited + "# again\n")
    deploy()
    assert unit.with_name("ranvier.service.kept.2").read_text() == edited + "# again\n"


@pytest.mark.parametrize("path", ["etc/ranvier/homeserver.yaml", "etc/nginx/conf.d/ranvier.conf"])
def test_configuration_that_was_edited_is_left_alone(machine: Path, deploy: Deploy, path: str) -> None:
    """A certificate that certbot put in, or a setting, would be gone after the next run."""
    deploy(*FIRST)
    file = machine / path
    edited = file.read_text() + "# mine\n"
    file.write_text(edited)
    result = deploy()
    assert f"/{path} was edited by hand and is left as it is" in result.output
    assert file.read_text() == edited


def test_redis_own_configuration_keeps_its_rights_and_a_copy(machine: Path, deploy: Deploy) -> None:
    """Redis could not read its configuration any more, or nobody would know how it was before."""
    conf = machine / "etc/redis/redis.conf"
    os.chown(conf, 901, 901)
    conf.chmod(0o640)
    before = conf.read_text()
    result = deploy(*FIRST)
    assert "REPLACE /etc/redis/redis.conf" in result.output
    assert conf.read_text().startswith(before)
    assert conf.read_text().rstrip().endswith("include /etc/redis/ranvier.conf")
    status = conf.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (901, 901, 0o640)
    copy = conf.with_name("redis.conf.kept.1")
    assert copy.read_text() == before
    assert Target().rights(copy) == Target().rights(conf)


@pytest.mark.parametrize("name", ["redis.conf", "ranvier.conf"])
@pytest.mark.parametrize("how", ["link", "other name", "pipe"])
def test_what_redis_user_puts_into_the_place_of_a_file_is_refused(
    machine: Path, deploy: Deploy, how: str, name: str
) -> None:
    """Who broke into Redis would have root copy a secret file for them, or wait for ever."""
    secret, path = machine / "secret", machine / "etc/redis" / name
    secret.write_text("secret of root\n")
    secret.chmod(0o600)
    path.unlink(missing_ok=True)
    if how == "link":
        path.symlink_to(secret)
    elif how == "other name":
        path.hardlink_to(secret)
    else:
        os.mkfifo(path)
    before = files_of(machine)
    for more in ((), ("--dry-run",)):
        result = deploy(*FIRST, *more)
        assert result.exit_code == 1
        assert f"/etc/redis/{name} " in result.output
        assert "secret of root" not in result.output
    assert files_of(machine) == before


def test_a_fragment_of_redis_gets_its_rights_again(machine: Path, deploy: Deploy) -> None:
    """Redis could not read it after somebody closed it."""
    deploy(*FIRST)
    fragment = machine / "etc/redis/ranvier.conf"
    text = fragment.read_text()
    fragment.chmod(0o600)
    os.chown(fragment, 901, 0)
    assert deploy().exit_code == 0
    assert Target(machine).rights(Path("/etc/redis/ranvier.conf")) == ("root", "root", 0o644)
    assert fragment.read_text() == text
    assert "Nothing to do" in deploy().output


@pytest.mark.parametrize(
    ("own", "there"), [("", False), ("# tls-port 6380\n", False), ("tls-port 6380\n", True)]
)
def test_tls_is_closed_where_redis_has_it(machine: Path, deploy: Deploy, own: str, there: bool) -> None:
    """A Redis that was built without TLS would not start, or one with TLS would stay open to the network."""
    conf = machine / "etc/redis/redis.conf"
    conf.write_text(conf.read_text() + own)
    deploy(*FIRST)
    fragment = (machine / "etc/redis/ranvier.conf").read_text()
    assert ("\ntls-port 0\n" in fragment) is there


@pytest.mark.parametrize("name", ["redis-server@chat", "redis-server@chat.service"])
def test_redis_can_be_one_of_debians_instances(machine: Path, deploy: Deploy, name: str) -> None:
    """Who has other programs on the machine's Redis could not give Ranvier one of its own."""
    conf = machine / "etc/redis/redis-chat.conf"
    conf.write_text("port 0\n")
    shared = (machine / "etc/redis/redis.conf").read_text()
    result = deploy(*FIRST, "--redis-config", "/etc/redis/redis-chat.conf", "--redis-service", name)
    assert result.exit_code == 0, result.output
    units = machine / "etc/systemd/system"
    assert "ReadWritePaths=-/run/ranvier" in (units / "redis-server@chat.service.d/ranvier.conf").read_text()
    assert "After=network-online.target postgresql.service redis-server@chat.service\n" in (
        (units / "ranvier.service").read_text()
    )
    assert conf.read_text().endswith("include /etc/redis/ranvier.conf\n")
    assert (machine / "etc/redis/redis.conf").read_text() == shared


@pytest.mark.parametrize("own", ["requirepass secret\n", "  RequirePass secret\n", "# requirepass secret\n"])
def test_a_password_that_redis_asks_for_is_told_of(machine: Path, deploy: Deploy, own: str) -> None:
    """Workers would run without a word of each other, and all would seem to be well."""
    conf = machine / "etc/redis/redis.conf"
    conf.write_text(conf.read_text() + own)
    asks = not own.startswith("#")
    for result in (deploy(*FIRST), deploy()):
        assert result.exit_code == 0, result.output
        assert ("/etc/redis/redis.conf has a requirepass" in result.output) is asks
    yaml = machine / "etc/ranvier/conf.d/redis.yaml"
    yaml.write_text(yaml.read_text() + "  password: secret\n")
    assert "has a requirepass" not in deploy().output


def test_a_redis_that_was_used_before_is_told_of(machine: Path, deploy: Deploy) -> None:
    """Two Redis would fight for one socket, and workers hear nothing of each other."""
    deploy(*FIRST)
    (machine / "etc/redis/redis-chat.conf").write_text("port 0\n")
    instance = ("--redis-config", "/etc/redis/redis-chat.conf", "--redis-service", "redis-server@chat")
    assert "/etc/redis/redis.conf still includes" in deploy(*instance).output


def test_workers_are_added_without_editing_anything(machine: Path, deploy: Deploy) -> None:
    """A new worker would get no requests, or none would be started."""
    assert "systemctl restart" not in deploy(*FIRST).output
    assert deploy("--workers", "2,extra").exit_code == 0
    result = deploy("--workers", "worker1,worker2,extra")
    assert result.exit_code == 0, result.output
    assert "systemctl restart" not in result.output, "workers are restarted for nothing"
    assert 'worker_name: "extra"' in (machine / "etc/ranvier/workers/extra.yaml").read_text()
    assert "unix:/run/ranvier/extra.sock " in (machine / "etc/nginx/conf.d/ranvier-upstream.conf").read_text()
    target = (machine / "etc/systemd/system/ranvier.target").read_text()
    assert "ranvier-worker@extra.service" in target


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("homeserver.yaml", ["", "-worker@worker1", "-worker@worker2"]),
        ("workers/worker2.yaml", ["-worker@worker2"]),
    ],
)
def test_who_has_to_be_restarted_is_told(
    machine: Path, deploy: Deploy, yaml: str, expected: list[str]
) -> None:
    """Workers would go on with what they have read, or all be stopped at once where one needed it."""
    deploy(*FIRST)
    (machine / "etc/ranvier" / yaml).unlink()
    result = deploy()
    services = ", ".join(f"ranvier{name}.service" for name in expected)
    assert f"`systemctl restart NAME` with one after the other of {services}\n" in result.output
    assert "Nothing to do" in deploy().output


def test_workers_of_the_release_before_are_told_of(
    machine: Path, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update all would seem to be done while every worker runs the old release."""
    deploy(*FIRST)
    monkeypatch.setattr("ranvier.__version__", "99.0.0")
    for result in (deploy("--dry-run"), deploy()):
        assert result.exit_code == 0, result.output
        assert "this is another release than that of the last run" in result.output
        assert "ranvier.service, ranvier-worker@worker1.service" in result.output
        assert "Nothing to do" not in result.output
    assert "Nothing to do" in deploy().output


def test_the_file_of_a_worker_that_is_gone_is_moved_away(machine: Path, deploy: Deploy) -> None:
    """``ranvier doctor`` would miss the worker for ever, and nobody would know what its file said."""
    deploy(*FIRST)
    folder = machine / "etc/ranvier/workers"
    own = folder / "worker2.yaml"
    edited = own.read_text() + "worker_roles: [sync]\n"
    own.write_text(edited)
    (folder / "mine.yaml").write_text("worker_name: mine\n")
    result = deploy("--workers", 1)
    assert result.exit_code == 0, result.output
    assert "move /etc/ranvier/workers/worker2.yaml to" in result.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "mine.yaml", "worker1.yaml", "worker2.yaml.kept.1",
    ]  # fmt: skip
    assert (folder / "worker2.yaml.kept.1").read_text() == edited
    assert "Nothing to do" in deploy().output
    deploy("--workers", 2)
    assert "worker_roles" not in own.read_text()


def test_files_that_an_earlier_release_left_of_a_worker_are_moved_away(machine: Path, deploy: Deploy) -> None:
    """``ranvier doctor`` would go on to miss a worker that was taken away before the update."""
    deploy(*FIRST)
    values = json.loads((machine / RECORD).read_text())
    values["settings"]["workers"] = ["worker1"]
    (machine / RECORD).write_text(json.dumps(values))
    assert "move /etc/ranvier/workers/worker2.yaml" in deploy().output
    assert "Nothing to do" in deploy().output


def test_a_worker_that_is_for_other_things_gets_no_clients(machine: Path, deploy: Deploy) -> None:
    """A worker that is kept for sending to other servers would be slow at it, for all its clients."""
    deploy(*FIRST)
    own = machine / "etc/ranvier/workers/worker2.yaml"
    own.write_text(own.read_text() + "worker_roles: [federation_sender, background]\n")
    assert deploy().exit_code == 0
    upstream = machine / "etc/nginx/conf.d/ranvier-upstream.conf"
    assert "unix:/run/ranvier/worker2.sock " not in upstream.read_text()
    assert "unix:/run/ranvier/worker1.sock " in upstream.read_text()
    assert "Nothing to do" in deploy().output
    own.write_text(own.read_text().replace("federation_sender", "sync"))
    assert deploy().exit_code == 0
    assert "unix:/run/ranvier/worker2.sock " in upstream.read_text()


def test_roles_are_read_wherever_they_are_given(machine: Path, deploy: Deploy) -> None:
    """The first worker, which has no file of its own, could not be kept for other things."""
    deploy(*FIRST)
    (machine / "etc/ranvier/conf.d/mine.yaml").write_text("worker_roles: [background]\n")
    for name in ("worker1", "worker2"):
        own = machine / f"etc/ranvier/workers/{name}.yaml"
        own.write_text(own.read_text() + "worker_roles: [client, sync]\nnothing: 2024-02-30\n")
    result = deploy()
    assert result.exit_code == 0, result.output
    upstream = (machine / "etc/nginx/conf.d/ranvier-upstream.conf").read_text()
    assert re.findall(r"server unix:/run/ranvier/(.*).sock ", upstream) == ["worker1", "worker2"]


def test_a_run_that_failed_half_way_is_taken_up_again(machine: Path, deploy: Deploy) -> None:
    """After a failure the server would stay half deployed, and a second run would say that all is well."""
    blocked = machine / "etc/nginx"
    blocked.write_text("not a folder")
    assert deploy(*FIRST).exit_code == 1
    blocked.unlink()
    result = deploy(*FIRST)
    assert result.exit_code == 0, result.output
    assert (machine / "etc/nginx/conf.d/ranvier.conf").exists()
    assert "Nothing to do" in deploy().output


def test_a_run_that_failed_is_mended_by_one_with_other_options(machine: Path, deploy: Deploy) -> None:
    """What a mistyped option put into a file would stay there for ever, as if a person had written it."""
    blocked = machine / "etc/nginx/conf.d/.ranvier.conf.new"
    blocked.mkdir(parents=True)
    wrong = ("--server-name", "example.org", "--workers", "2", "--public-name", "matirx.example.org")
    assert deploy(*wrong).exit_code == 1
    yaml = machine / "etc/ranvier/homeserver.yaml"
    assert "matirx.example.org" in yaml.read_text()
    assert deploy(*wrong).exit_code == 1
    blocked.rmdir()
    result = deploy(*FIRST)
    assert result.exit_code == 0, result.output
    assert "edited by hand" not in result.output
    assert "//matrix.example.org/" in yaml.read_text()
    assert [path.name for path in machine.rglob("*.kept.*")] == ["redis.conf.kept.1"]
    assert "Nothing to do" in deploy().output
    blocked.mkdir()
    assert deploy("--public-name", "matirx.example.org").exit_code == 1
    blocked.rmdir()
    assert deploy().exit_code == 0
    assert "//matrix.example.org/" in yaml.read_text()
    assert "Nothing to do" in deploy().output


@pytest.mark.parametrize("place", [RECORD, FORMER_RECORD])
@pytest.mark.parametrize("how", ["owner", "mode", "link", "pipe"])
def test_a_record_that_others_may_have_written_is_refused(
    machine: Path, deploy: Deploy, how: str, place: str
) -> None:
    """Who broke into a worker would have root write files and start services as they like."""
    deploy(*FIRST)
    text = (machine / RECORD).read_text()
    (machine / RECORD).unlink()
    path = machine / place
    if how == "link":
        elsewhere = machine / "elsewhere"
        elsewhere.write_text(text)
        path.symlink_to(elsewhere)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(text)
        os.chown(path, 901 if how == "owner" else 0, 0)
        path.chmod(0o664 if how == "mode" else 0o644)
    before = files_of(machine)
    result = deploy()
    assert result.exit_code == 1
    assert f"/{place}" in result.output
    assert "trusted" in result.output or "not a file" in result.output
    assert files_of(machine) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user", "root"),
        ("user", "a\nb"),
        ("data_dir", "/etc/../root"),
        ("nginx_dir", "/etc/x;y"),
        ("workers", ["../x"]),
    ],
)
def test_a_record_says_nothing_that_options_may_not(
    machine: Path, deploy: Deploy, key: str, value: object
) -> None:
    """A record that came from elsewhere would put anything into units that root starts."""
    deploy(*FIRST)
    values = json.loads((machine / RECORD).read_text())
    values["settings"][key] = value
    (machine / RECORD).write_text(json.dumps(values))
    before = files_of(machine)
    result = deploy()
    assert result.exit_code == 1
    assert "cannot be used" in result.output
    assert files_of(machine) == before


def test_the_record_of_the_first_release_is_taken_over(machine: Path, deploy: Deploy) -> None:
    """After the update the server would be asked for all options, and files be taken for edited ones."""
    deploy(*FIRST)
    (machine / RECORD).rename(machine / FORMER_RECORD)
    result = deploy()
    assert result.exit_code == 0, result.output
    assert (machine / RECORD).exists()
    assert not (machine / FORMER_RECORD).exists()
    assert "Nothing to do" in deploy().output


def test_the_record_of_the_first_release_goes_after_an_update_that_failed_at_first(
    machine: Path, deploy: Deploy
) -> None:
    """A record that says what once was would come back to be believed when the newer one is moved away."""
    deploy(*FIRST)
    (machine / RECORD).rename(machine / FORMER_RECORD)
    blocked = machine / "etc/nginx/conf.d/.ranvier.conf.new"
    blocked.mkdir()
    assert deploy("--public-name", "chat.example.org").exit_code == 1
    blocked.rmdir()
    assert (machine / RECORD).exists()
    assert deploy().exit_code == 0
    assert not (machine / FORMER_RECORD).exists()
    (machine / FORMER_RECORD).write_text((machine / RECORD).read_text())
    assert deploy().exit_code == 0
    assert not (machine / FORMER_RECORD).exists()
    assert "Nothing to do" in deploy().output


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--server-name", "exa mple"),
        ("--server-name", "example.org", "--workers", "a,../b"),
        ("--server-name", "example.org", "--workers", "a,a"),
        ("--server-name", "example.org", "--workers", "main"),
        ("--server-name", "example.org", "--workers", "redis"),
        ("--server-name", "example.org", "--workers", ".hidden"),
        ("--server-name", "example.org", "--workers", "100"),
        ("--server-name", "example.org", "--workers", "99999999999999999999"),
        ("--server-name", "example.org", "--workers", "\u00b2"),
        ("--server-name", "example.org", "--user", "x;y"),
        ("--server-name", "example.org", "--user", "root"),
        ("--server-name", "example.org", "--redis-service", "redis.socket"),
        ("--server-name", "example.org", "--redis-service", "redis-server@"),
        ("--server-name", "example.org", "--redis-service", "a/b"),
        ("--server-name", "example.org", "--redis-config", "/etc/redis/ranvier.conf"),
        ("--server-name", "example.org", "--public-name", "a;b"),
        ("--server-name", "example.org", "--certificate", "/etc/a.pem"),
        ("--server-name", "example.org", "--program", "/opt/my programs/ranvier"),
    ],
)
def test_what_cannot_be_deployed_is_refused(machine: Path, deploy: Deploy, options: tuple[str, ...]) -> None:
    """A mistyped name would end up in the files of the system."""
    before = files_of(machine)
    assert deploy(*options).exit_code == 2
    assert files_of(machine) == before


def test_a_server_does_not_change_its_name(deploy: Deploy) -> None:
    """All users would be orphans."""
    deploy(*FIRST)
    result = deploy("--server-name", "other.org")
    assert result.exit_code == 2
    assert "cannot be changed" in result.output


def test_a_server_does_not_change_its_user(machine: Path, deploy: Deploy) -> None:
    """No worker could read its files or its database any more."""
    deploy(*FIRST)
    before = files_of(machine)
    result = deploy("--user", "daemon")
    assert result.exit_code == 2
    assert "this server runs as ranvier" in result.output
    assert files_of(machine) == before
    assert deploy("--user", "ranvier").exit_code == 0


def test_a_server_does_not_change_the_group_of_its_sockets(machine: Path, deploy: Deploy) -> None:
    """nginx could not enter the sockets' folder, and give everybody 502; then workers would lose Redis."""
    deploy(*FIRST)
    before = files_of(machine)
    result = deploy("--group", "others")
    assert result.exit_code == 2
    assert "for the group ranvier-sockets" in result.output
    assert files_of(machine) == before
    assert deploy("--group", "ranvier-sockets").exit_code == 0


def test_systemd_takes_the_units(machine: Path, deploy: Deploy) -> None:
    """The server would not start at boot."""
    program = machine / "usr/bin/ranvier"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    deploy(*FIRST, "--program", program)
    folder = machine / "etc/systemd/system"
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            *(
                f"{folder}/{name}"
                for name in ("ranvier.target", "ranvier.service", "ranvier-worker@worker1.service")
            ),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:/lib/systemd/system"},
        timeout=60,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "ranvier" in line]) == (0, [])
    text = (folder / "ranvier-worker@.service").read_text()
    for line in (
        "Type=notify",
        "NotifyAccess=main",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "RestartSec=3",
        "TimeoutStartSec=infinity",
        f"SuccessExitStatus={os.EX_TEMPFAIL}",
        "PartOf=ranvier.target",
    ):
        assert f"\n{line}\n" in text
    assert "/etc/ranvier/workers/%i.yaml" in text
