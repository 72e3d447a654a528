"""``ranvier doctor`` and what stands around a server: systemd, the web server, the locales of the system."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ranvier.deploy.record import Record
from ranvier.deploy.target import fingerprint
from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.processes.postgres import _environment as postgres_environment
from ranvier.storage.database import Database
from tests.deploy.examined_server import Server
from tests.deploy.test_programs import program, running_nginx, write_nginx
from tests.postgres import database_dsn, private_folder
from tests.redis import private_redis
from tests.server.process import free_port

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and groups can be set by root only")

RUNS = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
SERVICES = ("ranvier.service", "ranvier-worker@w1.service")
VERSIONS = b'HTTP/1.1 200 OK\r\n\r\n{"versions": []}'
UNITS = ("ranvier.target", *SERVICES, "redis-server.service", "nginx.service")
SYSTEMCTL = """\
#!/bin/sh
# Stands for systemd's program: `systemctl show --property=… UNIT…`, a paragraph for each unit.
test "$1" = show || exit 1
shift 2
for unit in "$@"; do cat "{folder}/$unit"; echo; done
"""


def systemd(folder: Path, **changes: Mapping[str, str]) -> str:
    """Give a program that answers as systemd's does where all units run, but for some."""
    for name in UNITS:
        unit = {"Id": name, **RUNS, "NeedDaemonReload": "no", **changes.get(name.split(".")[0], {})}
        (folder / name).write_text("".join(f"{key}={value}\n" for key, value in unit.items()))
    path = folder / "systemctl"
    path.write_text(SYSTEMCTL.format(folder=folder))
    path.chmod(0o755)
    return str(path)


async def about(server: Server, *checks: str) -> list[tuple[str, str, str]]:
    """Give severity, check and message of what is found by some checks."""
    return [(it.severity, it.check, it.message) for it in await server.findings() if it.check in checks]


async def test_units_that_run_are_well(server: Server, tmp_path: Path) -> None:
    """An administrator could not see that systemd runs all workers."""
    server.edit(systemctl=systemd(tmp_path))
    found = await about(server, "unit", "unit-boot", "unit-changed", "examination")
    assert found == [("ok", "unit", f"{name} runs") for name in SERVICES]


@pytest.mark.parametrize(
    ("unit", "state", "expected"),
    [
        ("ranvier-worker@w1", {"ActiveState": "failed", "SubState": "failed"}, ("error", "unit")),
        ("ranvier-worker@w1", {"ActiveState": "activating", "SubState": "auto-restart"}, ("error", "unit")),
        ("ranvier-worker@w1", {"ActiveState": "activating", "SubState": "start"}, ("note", "unit")),
        ("ranvier-worker@w1", {"NeedDaemonReload": "yes"}, ("warning", "unit-changed")),
        ("ranvier", {"UnitFileState": "disabled"}, ("warning", "unit-boot")),
        ("ranvier", {"LoadState": "not-found"}, ("error", "unit")),
        ("nginx", {"ActiveState": "failed", "SubState": "failed"}, ("error", "unit")),
        ("nginx", {"ActiveState": "inactive", "UnitFileState": "disabled"}, None),
    ],
)
async def test_a_unit_that_does_not_run_is_found(
    server: Server, tmp_path: Path, unit: str, state: dict[str, str], expected: tuple[str, str] | None
) -> None:
    """A worker that systemd gave up, or that is not there after the next boot, would be said to be well."""
    server.edit(systemctl=systemd(tmp_path, **{unit: state}))
    found = [finding[:2] for finding in await about(server, "unit", "unit-boot", "unit-changed")]
    wrong = [finding for finding in found if finding[0] != "ok"]
    assert set(wrong) == ({expected} if expected is not None else set())


async def test_a_systemd_that_does_not_tell_is_said(server: Server, tmp_path: Path) -> None:
    """The rest would not be examined, or nobody would know that the units were not."""
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    server.edit(systemctl=str(tmp_path / "systemctl"))
    found = await server.findings()
    assert any("Failed to connect to bus" in it.message for it in found if it.severity == "error")
    assert {"redis", "database"} <= {it.check for it in found if it.severity == "ok"}


async def public(server: Server, port: int) -> tuple[str, str]:
    """Give what is found of the web server at a port."""
    server.edit(public=("127.0.0.1", port))
    (found,) = await about(server, "public")
    return found[0], found[2]


async def test_nginx_is_asked_as_clients_ask_it(server: Server) -> None:
    """Nobody would reach the server, and the doctor would say that all is well."""
    settings, port = server.scene.settings, free_port()
    assert settings is not None
    (server.folder / "nginx").mkdir()
    main = write_nginx(server.folder / "nginx", settings, port)
    with running_nginx(main, port):
        assert (await public(server, port))[0] == "ok"
        for door in server.doors.values():
            door.close()
            await door.wait_closed()
        severity, message = await public(server, port)
        assert severity == "error"
        assert "reaches no worker" in message


@pytest.mark.parametrize(
    ("answer", "severity"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html>It works!</html>", "error"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "error"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"versions": ["v1.11"], "unstable_features": {}}', "error"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://example.org/\r\n\r\n", "note"),
        (b"", "error"),
    ],
)
async def test_another_site_in_the_servers_place_is_found(
    server: Server, answer: bytes, severity: str
) -> None:
    """Clients would get a page of another site, or be logged out by another homeserver."""
    async with web_server(answer) as port:
        assert (await public(server, port))[0] == severity


@pytest.mark.parametrize("first", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 301 Moved\r\n\r\n", b""])
@pytest.mark.parametrize(("second", "severity"), [(VERSIONS, "ok"), (b"", "error")])
async def test_a_site_that_a_person_gave_a_certificate_is_asked_with_it(
    server: Server, tmp_path: Path, first: bytes, second: bytes, severity: str
) -> None:
    """A server whose certificate is certbot's, or another web server's, would never be said to be well."""
    context = certificate(tmp_path)
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, context: names.append(name)
    async with web_server(first) as port, web_server(second, context) as tls_port:
        server.edit(public_tls=("127.0.0.1", tls_port))
        assert (await public(server, port))[0] == severity
    assert names == ["example.org"]


def certificate(folder: Path) -> ssl.SSLContext:
    """Give what a server with a certificate of its own uses."""
    pem, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org",
         "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


@pytest.mark.parametrize(
    ("url", "tls", "told"),
    [
        ("http://example.org/", False, None),
        ("https://example.org/", False, None),
        ("https://example.org/", True, None),
        ("http://example.org/", True, "https://example.org/"),
        ("https://old.example.org/", False, "https://example.org/"),
    ],
)
async def test_an_address_that_is_not_the_sites_is_found(
    server: Server, tmp_path: Path, url: str, tls: bool, told: str | None
) -> None:
    """Clients that ask where the server is would be sent elsewhere, and browsers would refuse."""
    server.configure(main_extra=f"public_baseurl: {url}\n")
    async with web_server(VERSIONS, certificate(tmp_path) if tls else None) as port:
        place = ("127.0.0.1", port)
        server.edit(public=("127.0.0.1", free_port()) if tls else place, public_tls=place if tls else None)
        found = await about(server, "public-baseurl", "public")
    assert found[0][:2] == ("ok", "public")
    assert [f"answered at {told}" in message for *_, message in found[1:]] == ([] if told is None else [True])


async def test_a_certificate_that_nobody_asks_for_is_no_fault(server: Server) -> None:
    """A server without HTTPS would be said to be ill, or one behind another machine's proxy."""
    server.edit(public_tls=("127.0.0.1", free_port()))
    async with web_server(b"HTTP/1.1 301 Moved\r\n\r\n") as port:
        assert (await public(server, port))[0] == "note"
    assert (await public(server, free_port()))[0] == "note"


@pytest.mark.parametrize(
    ("nginx", "site", "status", "severity"),
    [
        ("active", "as deployed", 404, "error"),
        ("inactive", "as deployed", 404, "note"),
        ("active", "edited", 404, "note"),
        ("inactive", "edited", 502, "error"),
    ],
)
async def test_who_answers_in_nginx_place_is_for_the_administrator_to_know(
    server: Server, tmp_path: Path, nginx: str, site: str, status: int, severity: str
) -> None:
    """A server that clients reach by another web server would be said to be ill."""
    path = server.folder / "ranvier.conf"
    path.write_text(site)
    record = Record(files={str(path): fingerprint("as deployed")})
    systemctl = systemd(tmp_path, nginx={"ActiveState": nginx, "UnitFileState": "disabled"})
    server.edit(systemctl=systemctl, record=record)
    async with web_server(f"HTTP/1.1 {status} Some\r\n\r\n".encode()) as port:
        found, message = await public(server, port)
    assert (found, str(status) in message) == (severity, True)


@asynccontextmanager
async def web_server(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Give the port of a web server that says the same to all."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(say, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def test_a_web_server_on_another_machine_is_no_fault(server: Server) -> None:
    """A healthy server behind another machine's proxy would never be said to be well."""
    assert (await public(server, free_port()))[0] == "note"


async def test_another_redis_of_the_machine_is_no_fault(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A healthy server beside another program's Redis would never be said to be well."""
    port = free_port()
    monkeypatch.setattr("ranvier.deploy.check_redis.TCP_PORT", port)
    async with private_redis() as other:
        await other.ask("CONFIG", "SET", "port", port)
        found = await about(server, "redis-other", "redis-tcp-open")
    assert [finding[:2] for finding in found] == [("note", "redis-other")]


async def test_a_redis_that_lost_its_configuration_is_recognised(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator would restart it again and again, or not at all where the other one is for others."""
    port, path = free_port(), server.redis.config.path
    monkeypatch.setattr("ranvier.deploy.check_redis.TCP_PORT", port)
    await server.redis.ask("CONFIG", "SET", "port", port)
    assert path is not None
    path.unlink()
    (found,) = [it for it in await server.findings() if it.check == "redis-down"]
    assert f"TCP port {port}" in found.message
    assert "if it is the same Redis, run `ranvier deploy`" in found.advice
    assert "otherwise systemctl restart redis-server.service" in found.advice


async def test_the_service_of_redis_is_named_as_it_was_deployed(server: Server) -> None:
    """An administrator would start another Redis than Ranvier's."""
    settings = server.scene.settings
    assert settings is not None
    server.edit(settings=replace(settings, redis_service="redis-ranvier.service"))
    await server.redis.server.stop()
    (found,) = [it for it in await server.findings() if it.check == "redis-down"]
    assert "systemctl restart redis-ranvier.service" in found.advice


async def test_a_locale_that_updates_change_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes would silently break with an update of the system's C library."""
    with private_folder() as folder:
        subprocess.run(
            [program("localedef"), "--no-archive", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.utf8")],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        environment = {**postgres_environment(), "LOCPATH": str(folder)}  # where the C library looks for it
        monkeypatch.setattr("ranvier.processes.postgres._environment", lambda: environment)
        postgres = EmbeddedPostgres(folder)
        dsn = await postgres.start()
        try:
            admin = Database({"dsn": dsn}, size=1)
            await admin.execute(
                "CREATE DATABASE german TEMPLATE template0 LC_COLLATE 'de_DE.utf8' LC_CTYPE 'C.UTF-8'"
            )
            await admin.close()
            server.edit(dsn=database_dsn(dsn, "german"))
            (found,) = [it for it in await server.findings() if it.check == "database-locale"]
        finally:
            await postgres.stop()
    assert (found.severity, "de_DE.utf8" in found.message) == ("warning", True)
    assert "--locale=C" in found.advice
