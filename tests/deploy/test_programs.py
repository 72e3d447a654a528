"""What is written for nginx and Redis, given to a real nginx and a real Redis."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from ranvier.client_api import event_stream, sync
from ranvier.deploy import nginx, system_files
from ranvier.deploy.commands import has_two_sites
from ranvier.deploy.settings import Settings
from ranvier.processes.application import client_routes
from tests.postgres import private_folder
from tests.server.process import free_port


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a short path."""
    with private_folder() as path:
        yield path


def write_nginx(folder: Path, settings: Settings, port: int) -> Path:
    """Write what nginx needs around the files that are tested, and give its main file."""
    routes = nginx.public_routes()
    server = nginx.server_file(settings, routes)
    server = server.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("    listen [::]:80;\n", "")
    (folder / "a-upstream.conf").write_text(nginx.upstream_file(settings, routes))
    (folder / "b.conf").write_text(server)
    main = folder / "nginx.conf"
    main.write_text(
        f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\nworker_processes 1;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"include {folder}/a-upstream.conf; include {folder}/b.conf; }}\n"
    )
    return main


def run_nginx_test(main: Path) -> tuple[int, str]:
    """Run ``nginx -t``."""
    done = subprocess.run(
        [program("nginx"), "-t", "-c", str(main), "-e", str(main.with_name("error.log"))],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.returncode, done.stderr


def program(name: str) -> str:
    """Find a program, which Debian may keep in a folder for administrators."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed")
    return found


def test_nginx_takes_its_file(folder: Path) -> None:
    """The web server would refuse to start with the new file, and the server would be unreachable."""
    settings = Settings("example.org", "matrix.example.org", socket_dir=folder)
    assert run_nginx_test(write_nginx(folder, settings, free_port()))[0] == 0


def test_nginx_takes_its_file_with_a_certificate(folder: Path) -> None:
    """A server with HTTPS could not be deployed."""
    main = write_nginx(folder, with_certificate(folder), free_port())
    status, said = run_nginx_test(main)
    assert status == 0, said
    assert "return 301 https://" in (folder / "b.conf").read_text()


def with_certificate(folder: Path) -> Settings:
    """Make a certificate and give the settings of a server that has it."""
    pem, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=matrix.example.org",
         "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return Settings(
        "example.org", "matrix.example.org", socket_dir=folder, certificate=pem, certificate_key=key
    )


@pytest.mark.parametrize("tls", [False, True])
async def test_a_certificate_can_be_had_and_renewed(folder: Path, tls: bool) -> None:
    """The certificate would run out after three months, and no client would connect any more."""
    settings = with_certificate(folder) if tls else Settings("a.org", "matrix.example.org", socket_dir=folder)
    port = free_port()
    main, site = write_nginx(folder, settings, port), folder / "b.conf"
    text = site.read_text().replace("    listen [::]:443 ssl http2;\n", "")
    text = text.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{free_port()} ssl http2;")
    site.write_text(text.replace("/var/www/html", str(folder / "html")))
    challenge = "/.well-known/acme-challenge/token"
    path = folder / f"html{challenge}"
    path.parent.mkdir(parents=True)
    path.write_text("token")
    with running_nginx(main, port):
        assert await get(port, challenge, "") == 200
        assert await get(port, "/_other", "") == (301 if tls else 404)


def test_what_nginx_says_of_two_sites_with_one_name_is_understood(folder: Path) -> None:
    """The site of another server would be taken over without a word, or this one be ignored."""
    host = "Matrix.example.org"
    main = write_nginx(folder, Settings("example.org", host, socket_dir=folder), free_port())
    assert not has_two_sites(run_nginx_test(main)[1], host)
    site = (folder / "b.conf").read_text()
    (folder / "b.conf").write_text(f"{site}\n{site.lower()}")
    status, said = run_nginx_test(main)
    assert (status, has_two_sites(said, host)) == (0, True)
    assert not has_two_sites(said, "example.org")


@contextmanager
def running_nginx(main: Path, port: int) -> Iterator[None]:
    """Run nginx until the end of the block."""
    process = subprocess.Popen([program("nginx"), "-c", str(main), "-e", str(main.with_name("error.log"))])
    try:
        wait_for_port(process, port)
        yield
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a program that was just started accepts connections."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, "the program ended"
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail("the program does not listen")


@asynccontextmanager
async def workers(
    settings: Settings, asked: list[tuple[str, str]]
) -> AsyncIterator[dict[str, Callable[[], None]]]:
    """Stand for the workers: say who was asked, for what. Gives what stops each."""
    writers: dict[str, list[asyncio.StreamWriter]] = {name: [] for name in settings.names}

    def serve(name: str):  # type: ignore[no-untyped-def]
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers[name].append(writer)
            while head := await reader.readuntil(b"\r\n\r\n"):
                asked.append((name, head.split(b" ", 2)[1].decode()))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        return quietly

    servers = {
        name: await asyncio.start_unix_server(serve(name), settings.socket(name)) for name in settings.names
    }

    def stop(name: str) -> None:
        servers[name].close()
        settings.socket(name).unlink(missing_ok=True)
        for writer in writers[name]:
            writer.close()

    try:
        yield {name: partial(stop, name) for name in settings.names}
    finally:
        for name in settings.names:
            stop(name)


async def get(port: int, path: str, token: str, method: str = "GET", headers: Sequence[str] = ()) -> int:
    """Ask nginx for a path and give the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    own = "".join(f"{header}\r\n" for header in headers)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: matrix.example.org\r\nAuthorization: Bearer {token}\r\n"
        f"{own}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def test_nginx_sends_a_room_to_one_worker_and_to_another_when_that_is_gone(folder: Path) -> None:
    """Requests would fail while a worker restarts, or every worker would load every room."""
    settings, port = Settings("example.org", "matrix.example.org", socket_dir=folder), free_port()
    asked: list[tuple[str, str]] = []
    async with workers(settings, asked) as stops:
        with running_nginx(write_nginx(folder, settings, port), port):
            for number in range(6):
                room = "/_matrix/client/v3/rooms/!r%3Aexample.org"
                paths = (f"{room}/messages", f"{room}/send/m.room.message/{number}", f"{room}/members")
                for path in paths:
                    assert await get(port, path, f"token{number}") == 200
            assert len({name for name, _ in asked}) == 1
            assert asked[0][1].startswith("/_matrix/client/v3/rooms/!r%3Aexample.org/"), (
                "the path came decoded"
            )
            chosen = asked[0][0]
            stops[chosen]()
            asked.clear()
            for _ in range(4):
                assert await get(port, "/_matrix/client/v3/rooms/!r:example.org/members", "t") == 200
            assert chosen not in {name for name, _ in asked}
            asked.clear()
            for number in range(30):
                assert await get(port, "/_matrix/client/v3/sync", f"user{number}") == 200
            assert len({name for name, _ in asked}) > 1


async def test_what_nginx_sends_to_a_second_worker_has_the_same_name(folder: Path) -> None:
    """A topic would be set twice when a worker dies, or a client could say that it was set before."""
    settings, port = Settings("example.org", "matrix.example.org", socket_dir=folder), free_port()
    asked: list[tuple[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        names = re.findall(r"(?im)^x-request-id: (.*)\r$", head)
        asked.append((head.partition(" ")[0], ",".join(names)))
        if len(asked) > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with AsyncExitStack() as stack:
        for name in settings.names:
            server = await asyncio.start_unix_server(serve, settings.socket(name))
            stack.callback(server.close)
        stack.enter_context(running_nginx(write_nginx(folder, settings, port), port))
        path = "/_matrix/client/v3/rooms/!r:example.org/state/m.room.topic"
        own = ("X-Request-Id: 0123456789abcdef", "x-request-id: 0123456789abcdef")
        assert await get(port, path, "token", "PUT", own) == 200
        (first, second) = asked
        assert first == second
        assert re.fullmatch("[0-9a-f]{32}", first[1])
        asked.clear()
        assert await get(port, "/_matrix/client/v3/createRoom", "token", "POST") == 502
        assert [method for method, _ in asked] == ["POST"], "what has no name of the client's is sent once"


async def test_nginx_gives_the_page_of_administrators_and_no_metrics(folder: Path) -> None:
    """An administrator with a phone would get 404, or everybody would see the figures of the workers."""
    settings, port = Settings("example.org", "matrix.example.org", socket_dir=folder), free_port()
    asked: list[tuple[str, str]] = []
    there = ("/_ranvier", "/_ranvier/", "/_ranvier/page/console.js", "/_ranvier/api/status")
    async with workers(settings, asked):
        with running_nginx(write_nginx(folder, settings, port), port):
            for path in there:
                assert await get(port, path, "token") == 200
            assert {path for _, path in asked} == set(there)
            asked.clear()
            for path in ("/_ranvier/metrics", "/metrics", "/_ranvierx", "/health"):
                assert await get(port, path, "token") == 404
            assert asked == []
            assert await get(port, "/_synapse/admin/v1/register", "token") == 200
            assert await get(port, "/_synapse/client/oidc/callback?code=1&state=2", "token") == 200
    text = (folder / "b.conf").read_text()
    assert "allow" in text.partition("location /_synapse/admin/ {")[2].partition("}")[0]
    pages = ("= /_ranvier", "= /_ranvier/", "/_ranvier/page/", "/_ranvier/api/", "/_synapse/client/")
    for location in pages:
        assert "allow" not in text.partition(f"location {location} {{")[2].partition("}")[0]


async def connect(
    process: subprocess.Popen[bytes], path: Path
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a program that was just started: its socket is there a moment before it listens."""
    while process.poll() is None:
        try:
            return await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.to_thread(os.sched_yield)
    pytest.fail("the program ended")


async def test_redis_answers_on_its_socket_and_not_by_tcp(folder: Path) -> None:
    """Every program and user could read and forge what workers tell each other, or it would fill the disk."""
    port = free_port()
    settings = Settings("example.org", "matrix.example.org", socket_dir=folder)
    fragment = folder / "ranvier.conf"
    main = folder / "redis.conf"
    kept = f"dir {folder}\nsave 3600 1 300 100\nappendonly yes\n"
    own = f"port {port}\nbind 127.0.0.1\nunixsocketperm 777\n{kept}"
    fragment.write_text(system_files.redis_fragment(settings, own))
    main.write_text(system_files.with_include(own, str(fragment)))
    redis = subprocess.Popen([program("redis-server"), str(main)], stdout=subprocess.DEVNULL)
    try:
        reader, writer = await connect(redis, settings.redis_socket)
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        writer.write(b"CONFIG GET save\r\n")
        assert await reader.readuntil(b"$0\r\n\r\n") == b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"
        writer.write(b"CONFIG GET appendonly\r\n")
        assert [await reader.readline() for _ in range(5)][-1] == b"no\r\n"
        writer.close()
        assert settings.redis_socket.stat().st_mode & 0o777 == 0o770
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(("127.0.0.1", port))
    finally:
        redis.terminate()
        redis.wait(10)


def test_nginx_waits_for_longer_than_a_worker_lets_clients_wait() -> None:
    """A client that polls for hours would be told 504 after having been sent from one worker to the next."""
    text = nginx.server_file(Settings("example.org", "example.org"), client_routes())
    found = {int(minutes) for minutes in re.findall(r"proxy_read_timeout (\d+)m;", text)}
    assert min(found) * 60_000 > max(sync._MAX_TIMEOUT_MS, event_stream._MAX_TIMEOUT_MS)


def test_every_route_that_is_placed_is_in_the_map() -> None:
    """A new endpoint of rooms would be spread over all workers."""
    text = nginx.upstream_file(Settings("example.org", "example.org"), client_routes())
    patterns = [re.compile(found.replace("(?<", "(?P<")) for found in re.findall(r'"~(\^[^"]*)"', text)]
    placed: dict[str, bool] = {}
    for route in client_routes():
        for path in route.paths:
            placed[path] = placed.get(path, False) or route.placed_by not in (None, "user", "writers")
    for path, expected in placed.items():
        example = re.sub(r"\{[^}]*\}", "x", path)
        assert any(pattern.match(example) for pattern in patterns) == expected, path
