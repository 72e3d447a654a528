"""``ranvier deploy`` on a machine with services: programs of the test's own stand for systemd and nginx."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ranvier.cli.deploy import _do
from ranvier.deploy.actions import Action, DeployError
from ranvier.deploy.settings import Settings
from ranvier.deploy.system import System
from ranvier.deploy.target import Target
from tests.deploy.conftest import REDIS_CONF, Deploy, files_of
from tests.postgres import private_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and groups can be set by root only")

SITE = "etc/nginx/conf.d/ranvier.conf"
REDIS = "etc/redis/redis.conf"
UPSTREAM = "etc/nginx/conf.d/ranvier-upstream.conf"
SYSTEMCTL = """\
#!/bin/sh
cd {folder} || exit 9
echo "systemctl $*" >> log
verb=$1; shift
status=0
case $verb in
show) for last; do :; done; [ -e "known/$last" ] && echo loaded || echo not-found ;;
is-active)
    for unit; do
        state=inactive; [ -e "state/$unit" ] && read -r state < "state/$unit"
        echo $state
    done ;;
is-enabled) [ -e "enabled/$1" ] && echo enabled || echo disabled ;;
enable) : > "enabled/$1" ;;
start)
    for unit; do
        echo active > "state/$unit"
        [ -e "broken/$unit" ] && {{ echo failed > "state/$unit"; status=1; }}
    done ;;
status) for last; do :; done; echo "why $last does not run" ;;
reload-or-restart | restart) [ -e "broken/$1" ] && {{ echo "Job for $1 failed" >&2; status=1; }} ;;
esac
exit $status
"""
NGINX = """\
#!/bin/sh
cd {folder} || exit 9
echo "nginx $*" >> log
[ -e broken/nginx ] && {{ echo "nginx: [emerg] no" >&2; exit 1; }}
[ -e broken/name ] && echo "nginx: [warn] conflicting server name \\"example.org\\" on [::]:80, ignored" >&2
exit 0
"""
RUNUSER = """\
#!/bin/sh
cd {folder} || exit 9
[ -e known/postgresql ] || exit 2
case "$*" in *max_connections*) echo 97 ;; *) echo 1 ;; esac
"""
WORKERS = ("ranvier.service", "ranvier-worker@worker1.service", "ranvier-worker@worker2.service")
RESTART = "`systemctl restart NAME` with one after the other of"


class Services:
    """A folder that says how the services of a machine are, and what was asked of them."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder = folder
        self.first = ("--server-name", "example.org", "--workers", 2, "--program", program)
        for name in ("known", "state", "enabled", "broken", "bin"):
            (folder / name).mkdir(parents=True)
        for name in ("redis-server.service", "nginx.service", "postgresql"):
            (folder / "known" / name).touch()
        (folder / "enabled" / "nginx.service").touch()
        for name, text in (("systemctl", SYSTEMCTL), ("nginx", NGINX), ("runuser", RUNUSER)):
            (folder / "bin" / name).write_text(text.format(folder=folder))
            (folder / "bin" / name).chmod(0o755)
        self.system = System(str(folder / "bin"), has_ipv6=True)

    def set(self, kind: str, name: str, there: bool = True) -> None:
        """Make a service known or broken, or no longer."""
        path = self.folder / kind / name
        path.touch() if there else path.unlink()

    def asked(self) -> list[str]:
        """Give the commands that did something, and forget them."""
        log = self.folder / "log"
        looks = ("systemctl show", "systemctl is-", "systemctl status")
        lines = [line for line in log.read_text().splitlines() if not line.startswith(looks)]
        log.write_text("")
        return lines


@pytest.fixture
def services(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Services:
    """Let ``deploy`` take the folder that it writes into for a machine with services."""
    services = Services(tmp_path_factory.mktemp("services") / "all", Path("/bin/true"))
    monkeypatch.setattr("ranvier.cli.deploy.system_of", lambda target: services.system)
    return services


def test_the_files_are_used_and_the_workers_are_started(services: Services, deploy: Deploy) -> None:
    """The server would be on the disk and not run, or a second run would disturb it."""
    result = deploy(*services.first)
    assert result.exit_code == 0, result.output
    asked = services.asked()
    assert asked[0] == "nginx -t"
    assert asked.index("systemctl daemon-reload") < asked.index("systemctl restart redis-server.service")
    start = f"systemctl start ranvier.target {' '.join(WORKERS)}"
    assert asked[-2:] == [start, "systemctl reload-or-restart nginx.service"]
    (services.folder / "state" / WORKERS[1]).write_text("reloading\n")
    assert "Nothing to do" in deploy().output
    assert services.asked() == []


def test_a_machine_without_ipv6_has_a_site_without(machine: Path, services: Services, deploy: Deploy) -> None:
    """nginx would refuse its site on a kernel with ``ipv6.disable=1``, whatever options were given."""
    assert deploy(*services.first).exit_code == 0
    services.system = System(services.system.path, has_ipv6=False)
    for options in ((), make_certificate(machine)):
        site = (machine / SITE).read_text()
        assert deploy(*options).exit_code == 0
        assert (machine / SITE).read_text() != site
        assert "[::]" not in (machine / SITE).read_text()
        assert "Nothing to do" in deploy().output
    assert re.findall(r"listen .*;", (machine / SITE).read_text()) == ["listen 80;", "listen 443 ssl http2;"]


def make_certificate(machine: Path) -> tuple[str, ...]:
    """Write a certificate and give the options that name it."""
    for name in ("right", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org",
             "-keyout", str(machine / f"{name}.key"), "-out", str(machine / f"{name}.pem")],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    return ("--certificate", "/right.pem", "--certificate-key", "/right.key")


def test_a_certificate_that_cannot_be_used_is_told_before_anything_is_done(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """nginx would not start at the next boot, for all of its sites."""
    right = make_certificate(machine)
    for certificate, key, *more in (
        ("/typo.pem", "/right.key"),
        ("/typo.pem", "/right.key", "--no-start"),
        ("/right.pem", "/typo.key"),
        ("/right.pem", "/other.key"),
        ("/etc/passwd", "/right.key"),
    ):
        before = files_of(machine)
        result = deploy(*services.first, "--certificate", certificate, "--certificate-key", key, *more)
        assert result.exit_code == 1
        assert certificate in result.output
        assert key in result.output
        assert files_of(machine) == before
    assert deploy(*services.first, *right).exit_code == 0
    assert "ssl_certificate /right.pem;" in (machine / SITE).read_text()


def test_configuration_that_names_another_address_than_the_site_is_told_of(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """With HTTPS, clients in browsers would be told of an address without it, and would not connect."""
    assert deploy(*services.first).exit_code == 0
    yaml = machine / "etc/ranvier/homeserver.yaml"
    yaml.write_text(yaml.read_text() + "enable_registration: true\n")
    assert "public_baseurl" not in deploy().output
    certificate = make_certificate(machine)
    assert "write `public_baseurl: https://example.org/` into" in deploy(*certificate).output
    yaml.write_text(yaml.read_text().replace("http:", "https:"))
    assert "public_baseurl" not in deploy().output
    result = deploy("--public-name", "chat.example.org")
    assert "are told of https://example.org/, and nginx's site is https://chat.example.org/" in result.output


def test_a_site_that_certbot_edited_has_a_certificate(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """Each run would ask for a certificate that is there, and not say that clients are told of ``http``."""
    assert "nginx has no certificate" in deploy(*services.first).output
    site = machine / SITE
    site.write_text(site.read_text().replace("listen 80;", "listen 443 ssl;\n    ssl_certificate /a.pem;"))
    result = deploy()
    assert "nginx has no certificate" not in result.output
    assert "write `public_baseurl: https://example.org/` into" in result.output
    yaml = machine / "etc/ranvier/homeserver.yaml"
    yaml.write_text(yaml.read_text().replace("http:", "https:"))
    assert "public_baseurl" not in deploy().output


def test_an_address_in_a_file_of_its_own_goes_over_the_one_that_was_deployed(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """Each run would tell of an address that no client hears, or say nothing of the one that they do."""
    assert deploy(*services.first).exit_code == 0
    own = machine / "etc/ranvier/conf.d/own.yaml"
    own.write_text("public_baseurl: https://example.org/\n")
    site = machine / SITE
    deployed = site.read_text()
    site.write_text(deployed.replace("listen 80;", "listen 443 ssl;\n    ssl_certificate /a.pem;"))
    assert "clients are told" not in deploy().output
    own.write_text("public_baseurl: http://example.org/\n")
    site.write_text(deployed)
    assert "clients are told" not in deploy().output
    told = deploy(*make_certificate(machine)).output
    assert "clients are told of http://example.org/, and nginx's site is https://example.org/" in told
    assert "write `public_baseurl: https://example.org/` into /etc/ranvier/conf.d/own.yaml" in told


def test_what_nginx_refuses_does_not_stay(machine: Path, services: Services, deploy: Deploy) -> None:
    """nginx would not start at the next boot, and a run with corrected options would not mend it."""
    services.set("broken", "nginx")
    result = deploy(*services.first)
    assert result.exit_code == 1
    assert "nginx: [emerg] no" in result.output
    assert "as they were before" in result.output
    assert services.asked() == ["nginx -t", "systemctl daemon-reload"], "something else was done"
    assert written_by_us(machine) == []
    assert (machine / REDIS).read_text() == REDIS_CONF
    services.set("broken", "nginx", there=False)
    assert deploy(*services.first).exit_code == 0
    services.asked()

    before = {path: (machine / path).read_text() for path in written_by_us(machine)}
    assert {SITE, UPSTREAM, "etc/ranvier/homeserver.yaml"} <= before.keys()
    services.set("broken", "nginx")
    assert deploy("--public-name", "matrix.example.org", "--workers", 3).exit_code == 1
    assert {path: (machine / path).read_text() for path in written_by_us(machine)} == before
    services.set("broken", "nginx", there=False)
    result = deploy("--public-name", "chat.example.org")
    assert result.exit_code == 0, result.output
    assert "edited by hand" not in result.output
    assert "server_name chat.example.org;" in (machine / SITE).read_text()
    assert "nginx -t" in services.asked()


def test_a_host_that_another_site_has_is_not_taken_over(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """The clients of the server that had the host would be logged out by this one, and drop their keys."""
    services.set("broken", "name")
    result = deploy(*services.first)
    assert result.exit_code == 1
    assert "another site of nginx has the name example.org" in result.output
    assert services.asked() == ["nginx -t", "systemctl daemon-reload"], "something else was done"
    assert written_by_us(machine) == []
    services.set("broken", "name", there=False)
    assert deploy(*services.first).exit_code == 0
    services.set("broken", "name")
    assert deploy("--public-name", "chat.example.org").exit_code == 0, "the name is another server's"


def written_by_us(machine: Path) -> list[str]:
    """Give the files that ``deploy`` wrote, but for what is made once and what it remembers."""
    kept = ("signing.key", "registration_shared_secret", "deploy.json", "passwd", "group", "redis.conf")
    files = (path.relative_to(machine) for path in machine.rglob("*") if path.is_file())
    made = (path for path in files if not path.name.startswith((*kept, "shadow", "gshadow", ".pwd")))
    return sorted(map(str, made))


@pytest.mark.parametrize("broken", ["nginx", "redis-server.service"])
def test_what_a_run_that_was_cut_off_left_is_undone_by_the_next(
    machine: Path, services: Services, deploy: Deploy, broken: str
) -> None:
    """Redis would be off the network at its next start, for all who use it, with no server deployed."""
    blocked = machine / "etc/nginx/conf.d/.ranvier.conf.new"
    blocked.mkdir(parents=True)
    assert deploy(*services.first).exit_code == 1
    assert "include" in (machine / REDIS).read_text()
    blocked.rmdir()
    services.set("broken", broken)
    assert deploy(*services.first).exit_code == 1
    assert (machine / REDIS).read_text() == REDIS_CONF
    assert written_by_us(machine) == []
    services.set("broken", broken, there=False)
    assert deploy(*services.first).exit_code == 0
    assert "include" in (machine / REDIS).read_text()


def test_an_include_that_a_person_edited_keeps_its_file(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """Redis would not start, since it would include a file that is not there."""
    blocked = machine / "etc/nginx/conf.d/.ranvier.conf.new"
    blocked.mkdir(parents=True)
    deploy(*services.first)
    blocked.rmdir()
    conf = machine / REDIS
    conf.write_text(conf.read_text().replace("# For Ranvier; keep this line last.\n", ""))
    services.set("broken", "nginx")
    assert deploy(*services.first).exit_code == 1
    assert "include /etc/redis/ranvier.conf" in conf.read_text()
    assert (machine / "etc/redis/ranvier.conf").exists()


def test_an_nginx_that_is_switched_off_is_left_alone(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """It would fight for the ports of the machine's other web server, or no worker would be started."""
    services.set("enabled", "nginx.service", there=False)
    services.set("broken", "nginx")
    result = deploy(*services.first)
    assert result.exit_code == 0, result.output
    assert "nginx is switched off" in result.output
    asked = services.asked()
    assert not any("nginx" in line for line in asked)
    assert asked[-1].startswith("systemctl start ranvier.target")
    assert "Nothing to do" in deploy().output
    services.set("broken", "nginx", there=False)
    (services.folder / "state/nginx.service").write_text("active\n")
    result = deploy()
    assert "switched off" not in result.output
    assert services.asked() == ["nginx -t", "systemctl reload-or-restart nginx.service"]
    assert "Nothing to do" in deploy().output


def test_an_nginx_that_does_not_reload_is_asked_again_by_the_next_run(
    services: Services, deploy: Deploy
) -> None:
    """No worker would run, or the next run would say that all is done while clients get another site."""
    services.set("broken", "nginx.service")
    result = deploy(*services.first)
    assert result.exit_code == 1
    assert "Job for nginx.service failed" in result.output
    assert any(line.startswith("systemctl start ranvier.target") for line in services.asked())
    services.set("broken", "nginx.service", there=False)
    assert deploy().exit_code == 0
    assert services.asked() == ["nginx -t", "systemctl reload-or-restart nginx.service"]
    assert "Nothing to do" in deploy().output


def test_redis_is_as_before_when_it_does_not_start(machine: Path, services: Services, deploy: Deploy) -> None:
    """Whatever else uses the machine's Redis would be down until somebody finds out why."""
    services.set("broken", "redis-server.service")
    before = (machine / "etc/redis/redis.conf").read_text()
    result = deploy(*services.first)
    assert result.exit_code == 1
    assert "Job for redis-server.service failed" in result.output
    assert (machine / "etc/redis/redis.conf").read_text() == before
    assert not (machine / "etc/redis/ranvier.conf").exists()
    assert not (machine / "etc/systemd/system/redis-server.service.d/ranvier.conf").exists()
    assert services.asked()[-2:] == ["systemctl daemon-reload", "systemctl restart redis-server.service"]
    services.set("broken", "redis-server.service", there=False)
    assert deploy(*services.first).exit_code == 0


def test_the_service_of_redis_is_named_in_full(machine: Path, services: Services, deploy: Deploy) -> None:
    """systemd would not see the addition to the unit, and Redis could not make its socket."""
    result = deploy(*services.first, "--redis-service", "redis-server")
    assert result.exit_code == 0, result.output
    assert (machine / "etc/systemd/system/redis-server.service.d/ranvier.conf").exists()
    assert not (machine / "etc/systemd/system/redis-server.d").exists()
    assert "systemctl restart redis-server.service" in services.asked()


def test_notes_are_told_when_a_run_fails_as_well(machine: Path, services: Services, deploy: Deploy) -> None:
    """Nobody would learn that the file at fault was left as a person wrote it."""
    assert deploy(*services.first).exit_code == 0
    (machine / SITE).write_text("edited")
    services.set("broken", "nginx")
    result = deploy("--workers", 3)
    assert result.exit_code == 1
    assert f"/{SITE} was edited by hand" in result.output


def test_a_worker_that_does_not_run_fails_the_run_and_is_started_by_the_next(
    services: Services, deploy: Deploy
) -> None:
    """The command would say that all is done while nobody can connect."""
    services.set("broken", WORKERS[1])
    result = deploy(*services.first)
    assert result.exit_code == 1
    assert f"{WORKERS[1]}: not running" in result.output
    assert f"why {WORKERS[1]} does not run" in result.output
    assert f"why {WORKERS[2]}" not in result.output
    services.set("broken", WORKERS[1], there=False)
    services.asked()
    result = deploy()
    assert result.exit_code == 0, result.output
    start = f"systemctl start ranvier.target {' '.join(WORKERS)}"
    assert services.asked() == ["nginx -t", start, "systemctl reload-or-restart nginx.service"]
    assert "Nothing to do" in deploy().output


def test_a_worker_that_is_no_longer_wanted_is_stopped(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """It would run on, or start again with the machine."""
    deploy(*services.first)
    services.asked()
    result = deploy("--workers", 1)
    assert result.exit_code == 0, result.output
    assert f"systemctl disable --now {WORKERS[2]}" in services.asked()
    assert not (machine / "etc/ranvier/workers/worker2.yaml").exists()
    assert "Nothing to do" in deploy().output


def test_workers_may_take_the_time_that_they_are_given_to_stop(
    machine: Path, services: Services, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command would give up on a worker that finishes its requests, and again with each next worker."""
    assert deploy(*services.first).exit_code == 0
    services.asked()
    (machine / "etc/ranvier/conf.d/mine.yaml").write_text("drain_timeout: 30m\n")
    given: list[tuple[list[str], float]] = []
    really = subprocess.run

    def run(argv: list[str], **options: Any) -> Any:
        given.append((argv, options["timeout"]))
        return really(argv, **options)

    monkeypatch.setattr("subprocess.run", run)
    assert deploy("--workers", "other").exit_code == 0
    stops = [(argv, timeout) for argv, timeout in given if "disable" in argv]
    assert [argv for argv, _ in stops] == [["systemctl", "disable", "--now", *WORKERS[1:]]]
    assert "TimeoutStopSec=1830s" in (machine / "etc/systemd/system/ranvier.service").read_text()
    assert stops[0][1] > 1830


def test_who_asks_for_no_start_gets_none(machine: Path, services: Services, deploy: Deploy) -> None:
    """Workers would run before the old server's data is there, also at boot, or nginx ask nobody."""
    services.set("broken", "name")  # the old server's site is still there
    result = deploy(*services.first, "--no-start")
    assert result.exit_code == 0, result.output
    assert "nginx gets its files when this is run without --no-start" in result.output
    started = ("start ranvier", "enable ranvier", "nginx")
    assert not any(word in line for line in services.asked() for word in started)
    assert not (machine / UPSTREAM).exists()
    assert not (machine / SITE).exists()
    services.set("broken", "name", there=False)
    assert deploy().exit_code == 0
    start = f"systemctl start ranvier.target {' '.join(WORKERS)}"
    used = "systemctl reload-or-restart nginx.service"
    assert services.asked() == ["nginx -t", "systemctl enable ranvier.target", start, used]
    assert "nginx gets" not in deploy("--no-start").output
    site = (machine / SITE).read_text()
    assert "server_name example.org;" in site
    assert deploy("--no-start", "--public-name", "chat.example.org").exit_code == 0
    assert (machine / SITE).read_text() == site
    assert services.asked() == []
    assert "edited by hand" not in deploy().output
    assert "server_name chat.example.org;" in (machine / SITE).read_text()
    assert "Nothing to do" in deploy().output


def test_a_release_in_another_place_is_told_of(
    machine: Path, services: Services, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers would be restarted one after the other, and all still run the old release."""
    monkeypatch.setattr("ranvier.deploy.system.own_program", lambda: Path("/bin/echo"))
    assert "--program" not in deploy(*services.first).output
    monkeypatch.setattr("ranvier.__version__", "99.0.0")
    for _ in range(2):
        result = deploy()
        assert "workers run /bin/true, and this is /bin/echo" in result.output
        assert "another release" not in result.output
    result = deploy("--program", "/bin/echo")
    assert "--program" not in result.output
    assert "this is another release than that of the last run" in result.output
    assert f"{RESTART} {', '.join(WORKERS)}\n" in result.output
    assert "Nothing to do" in deploy().output


def test_another_commit_of_the_same_version_is_told_of(
    services: Services,
    deploy: Deploy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whoever follows the newest commits would be told that all is as it should be, and run an old one."""
    package = tmp_path_factory.mktemp("package") / "ranvier"
    (package / "storage/schema").mkdir(parents=True)
    schema = package / "storage/schema/0001_log.sql"
    schema.write_text("-- one\n")
    monkeypatch.setattr("ranvier.__file__", str(package / "__init__.py"))
    monkeypatch.setattr("ranvier.deploy.system.own_program", lambda: Path("/bin/true"))
    deploy(*services.first)
    assert "Nothing to do" in deploy().output
    schema.write_text("-- other\n")
    result = deploy()
    assert "this is another release than that of the last run" in result.output
    assert f"{RESTART} {', '.join(WORKERS)}\n" in result.output
    assert "Nothing to do" in deploy().output


def test_a_look_with_another_release_changes_nothing(
    services: Services, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers would be said to run an old release, or, once they do, nothing would be said."""
    for own, version, is_told in (
        ("/bin/true", "1.0.0", False),
        ("/bin/echo", "2.0.0", False),  # no more than a look
        ("/bin/true", "1.0.0", False),
        ("/bin/true", "2.0.0", True),  # the update, where workers look for it
    ):
        monkeypatch.setattr("ranvier.deploy.system.own_program", lambda own=own: Path(own))
        monkeypatch.setattr("ranvier.__version__", version)
        result = deploy(*services.first)
        assert result.exit_code == 0, result.output
        assert ("another release" in result.output) is is_told
        assert ("and this is /bin/echo" in result.output) is (own == "/bin/echo")


def test_workers_that_are_started_need_no_restart(
    services: Services, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stopped the server for an update would stop each worker once more, for nothing."""
    monkeypatch.setattr("ranvier.deploy.system.own_program", lambda: Path("/bin/true"))
    deploy(*services.first)
    (services.folder / "state" / WORKERS[1]).write_text("inactive\n")
    monkeypatch.setattr("ranvier.__version__", "99.0.0")
    result = deploy()
    assert f"{RESTART} {WORKERS[0]}, {WORKERS[2]}\n" in result.output
    for name in WORKERS:
        (services.folder / "state" / name).write_text("inactive\n")
    monkeypatch.setattr("ranvier.__version__", "99.0.1")
    assert "systemctl restart" not in deploy().output


@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_nginx_keeps_its_files_when_workers_do_not_start(
    machine: Path, services: Services, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever reloads nginx next, such as a renewed certificate, would send clients to sockets of nobody."""
    really = subprocess.run

    def run(argv: list[str], **options: Any) -> Any:
        if how == "interrupted" and argv[:2] == ["systemctl", "start"]:
            raise KeyboardInterrupt
        return really(argv, **options)

    services.set("broken", WORKERS[1])
    with monkeypatch.context() as patched:
        patched.setattr("subprocess.run", run)
        result = deploy(*services.first)
    assert result.exit_code == 1
    assert "nginx's files are as they were before" in result.output
    assert not (machine / UPSTREAM).exists()
    assert not (machine / SITE).exists()
    services.set("broken", WORKERS[1], there=False)
    assert deploy().exit_code == 0
    before = (machine / UPSTREAM).read_text()
    services.set("broken", "ranvier-worker@worker3.service")
    assert deploy("--workers", 3).exit_code == 1
    assert (machine / UPSTREAM).read_text() == before
    services.set("broken", "ranvier-worker@worker3.service", there=False)
    assert deploy().exit_code == 0
    assert "worker3.sock" in (machine / UPSTREAM).read_text()
    assert "Nothing to do" in deploy().output


class Killed(BaseException):
    """End a run without a word and without anything being put back, as SIGKILL does."""


@pytest.fixture
def killed_run(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that runs ``ranvier deploy`` and ends it before it runs a command."""
    really = _do

    def run(command: str, *options: Any) -> None:
        def do(action: Action, target: Target, *, dry_run: bool) -> None:
            if f"`{command}" in action.summary():
                raise Killed
            really(action, target, dry_run=dry_run)

        with monkeypatch.context() as patched:
            patched.setattr("ranvier.cli.deploy._do", do)
            with pytest.raises(Killed):
                deploy(*options)

    return run


@pytest.mark.parametrize(
    "command",
    [
        "nginx -t",
        "systemctl daemon-reload",
        "systemctl restart redis",
        "systemctl enable ranvier",
        "systemctl start ranvier",
        "systemctl reload-or-restart nginx",
    ],
)
def test_a_run_that_was_killed_is_taken_up_by_the_next(
    services: Services, deploy: Deploy, killed_run: Callable[..., None], command: str
) -> None:
    """nginx, Redis or the workers would go on as before, and each run say that there is nothing to do."""
    killed_run(command, *services.first)
    asked = services.asked()
    result = deploy(*services.first)
    assert result.exit_code == 0, result.output
    again = services.asked()
    assert again[0] == "nginx -t"
    assert again[-1] == "systemctl reload-or-restart nginx.service"
    asked += again
    for needed in ("daemon-reload", "restart redis-server.service", "enable ranvier.target"):
        assert f"systemctl {needed}" in asked
    assert f"systemctl start ranvier.target {' '.join(WORKERS)}" in asked
    assert "Nothing to do" in deploy().output


@pytest.mark.parametrize(
    ("command", "options"), [("nginx -t", ()), ("systemctl start ranvier", ("--workers", 2))]
)
def test_what_a_run_that_was_killed_has_begun_is_taken_back_by_one_that_does_not_want_it(
    machine: Path,
    services: Services,
    deploy: Deploy,
    killed_run: Callable[..., None],
    command: str,
    options: tuple[Any, ...],
) -> None:
    """nginx would ask a worker that nobody starts, after its administrator has thought better of it."""
    assert deploy(*services.first).exit_code == 0
    before = (machine / UPSTREAM).read_text()
    killed_run(command, "--workers", 3)
    assert (machine / UPSTREAM).read_text() != before
    services.asked()
    result = deploy(*options)
    assert result.exit_code == 0, result.output
    assert (machine / UPSTREAM).read_text() == before
    asked = services.asked()
    assert "systemctl disable --now ranvier-worker@worker3.service" in asked
    assert asked[-1] == "systemctl reload-or-restart nginx.service"
    assert "Nothing to do" in deploy().output


def test_what_the_page_says_takes_everything_away(machine: Path, services: Services, deploy: Deploy) -> None:
    """Redis would not start at the next boot, or nginx ask a server that is gone."""
    before = files_of(machine)
    assert deploy(*services.first).exit_code == 0
    text = (Path(__file__).parents[2] / "docs/deploy.md").read_text()
    section = text.partition("\n## Take away\n")[2].partition("\n## ")[0]
    stop, erase = re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)
    run_on(machine, services, stop)
    assert all(path.startswith(("etc/ranvier/", "etc/redis/redis.conf.")) for path in written_by_us(machine))
    assert (machine / REDIS).read_text().strip() == REDIS_CONF.strip()
    assert services.asked()[-2:] == ["systemctl daemon-reload", "systemctl restart redis-server"]
    assert deploy().exit_code == 0
    run_on(machine, services, stop)
    run_on(machine, services, erase)
    assert written_by_us(machine) == []
    assert [path for path in set(files_of(machine)) - set(before) if "ranvier" in path] == []


def run_on(machine: Path, services: Services, commands: str) -> None:
    """Run commands of a page on a machine that is a folder, with programs of the test for its services."""
    for name in ("userdel", "groupdel"):
        (services.folder / "bin" / name).write_text("#!/bin/sh\n")
        (services.folder / "bin" / name).chmod(0o755)
    script = re.sub(r"(?<= )/(?=etc/|run/|var/)", f"{machine}/", commands)
    env = {"PATH": f"{services.folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-eu"], check=False, input=script, env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_installed_is_told_and_the_rest_is_done(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """The run would end half way, after it took Redis from those who use it."""
    for name in ("nginx.service", "redis-server.service", "postgresql"):
        services.set("known", name, there=False)
    result = deploy(*services.first)
    assert result.exit_code == 0, result.output
    assert "there is no nginx" in result.output
    assert "there is no redis-server.service" in result.output
    assert "PostgreSQL does not answer" in result.output
    assert not any("nginx" in line or "redis" in line for line in services.asked())
    assert "ranvier.conf" not in (machine / "etc/redis/redis.conf").read_text()
    for name in ("nginx.service", "redis-server.service", "postgresql"):
        services.set("known", name)
    result = deploy()
    assert result.exit_code == 0, result.output
    assert "there is no" not in result.output
    assert "PostgreSQL" not in result.output
    asked = services.asked()
    assert "systemctl restart redis-server.service" in asked
    assert "systemctl reload-or-restart nginx.service" in asked
    assert "Nothing to do" in deploy().output


def test_a_database_elsewhere_is_not_missed(machine: Path, services: Services, deploy: Deploy) -> None:
    """Each run would tell somebody to install PostgreSQL who has it on another machine."""
    services.set("known", "postgresql", there=False)
    deploy(*services.first)
    own = machine / "etc/ranvier/conf.d/database.yaml"
    own.write_text("database: {name: psycopg2, args: {host: db}}\n")
    assert "PostgreSQL" not in deploy().output


def test_more_connections_than_postgresql_has_are_told_of(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """On a busy day clients would get 503 from the workers that came too late for a connection."""
    told = "the workers may want {} connections, and PostgreSQL has 97 for them"
    assert "may want" not in deploy(*services.first, "--workers", 8).output
    for _ in range(2):
        assert told.format(130) in deploy("--workers", 12).output
    own = machine / "etc/ranvier/workers/worker12.yaml"
    own.write_text(own.read_text() + "database: {args: {host: /run/postgresql, cp_max: 30}}\n")
    assert told.format(150) in deploy().output
    common = machine / "etc/ranvier/conf.d/database.yaml"
    common.write_text(common.read_text().replace("cp_max: 10", "cp_max: 5"))
    assert "may want" not in deploy().output
    common.write_text("database: {args: {host: db.example.org, cp_max: 30}}\n")
    assert "may want" not in deploy().output


def test_a_program_that_the_servers_user_cannot_run_is_told_before_anything_is_done(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """Every worker would fail with status 203/EXEC, or with a module that it does not find."""
    home = machine / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 901, 901)
    program = home / "ranvier"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    before = files_of(machine)
    for wrong in (program, machine / "missing", Path("/bin/false")):
        result = deploy("--server-name", "example.org", "--program", wrong)
        assert result.exit_code == 1
        assert f"the user ranvier cannot run {wrong}" in result.output
        assert files_of(machine) == before


@pytest.fixture
def run_as() -> Callable[[Path, str], None]:
    """Give a function that sees whether a user can run a program."""

    def check(program: Path, user: str) -> None:
        settings = Settings("example.org", "example.org", user=user, program=program)
        System().check_program(Target(), settings)

    return check


def test_a_user_who_is_there_is_asked_as_themselves(run_as: Callable[[Path, str], None]) -> None:
    """A server in its own user's folder would be refused, or one in another's be let through."""
    target = Target()
    with private_folder() as folder:
        folder.chmod(0o700)
        os.chown(folder, target.uid("www-data"), target.gid("www-data"))
        program = folder / "ranvier"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        run_as(program, "www-data")
        with pytest.raises(DeployError):
            run_as(program, "daemon")


def test_a_user_is_asked_with_the_groups_that_they_have(
    monkeypatch: pytest.MonkeyPatch, run_as: Callable[[Path, str], None]
) -> None:
    """A program that is open to a group of the server's user would be refused, though systemd can run it."""
    target = Target()
    gid = target.gid("daemon")
    monkeypatch.setattr("os.getgrouplist", lambda user, own: [own, gid])  # as after `usermod -aG daemon …`
    with private_folder() as folder:
        folder.chmod(0o750)
        os.chown(folder, 0, gid)
        program = folder / "ranvier"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        run_as(program, "www-data")


def test_a_user_without_a_group_of_that_name_is_told(
    machine: Path, services: Services, deploy: Deploy
) -> None:
    """An administrator would see a traceback."""
    passwd = machine / "etc/passwd"
    passwd.write_text(passwd.read_text() + "matrix:x:905:33::/:/bin/false\n")
    result = deploy(*services.first, "--user", "matrix")
    assert result.exit_code == 1
    assert "there is no group matrix" in result.output
