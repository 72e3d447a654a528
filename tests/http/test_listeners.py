"""Sockets: where the server answers, who may connect, and what a broken or hostile connection does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranvier.http.listeners import (
    Listener,
    ListenerSettings,
    TcpAddress,
    TlsFiles,
    UnixAddress,
    tls_context,
    unix_socket,
)
from ranvier.http.open_connections import ConnectionLimits
from tests.http.edge import client, read_answer, serving

V3 = "/_matrix/client/v3"
MAYBE = f"GET {V3}/maybe HTTP/1.1\r\nHost: a\r\n\r\n".encode()


async def test_a_unix_socket_with_its_mode(tmp_path: Path) -> None:
    """A proxy in the right group could not connect, or anybody could."""
    path = tmp_path / "client.sock"
    async with serving(path=path, mode=0o640) as edge:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        async with client(edge) as ask:
            assert (await ask.get(f"{V3}/maybe")).status == 200
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """After a crash the server would not start; or a second server would steal the first one's socket."""
    path = tmp_path / "client.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path=path) as edge:
        with pytest.raises(OSError, match="another process answers there"):
            async with serving(path=path):
                pass
        async with client(edge) as ask:
            assert (await ask.get("/health")).status == 200


async def test_a_socket_that_is_full_is_somebodys(tmp_path: Path) -> None:
    """An administrator would read that a resource is unavailable, and not who is in the way."""
    address = UnixAddress(tmp_path / "client.sock")
    with contextlib.ExitStack() as sockets:
        sockets.enter_context(unix_socket(address)).listen(0)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                waiting = sockets.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(address.path))
        with pytest.raises(OSError, match="another process answers there"):
            unix_socket(address)


async def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    """A wrong path in the configuration would delete a file."""
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        async with serving(path=path):
            pass
    assert path.read_text() == "precious"


async def test_a_port_in_use_is_named() -> None:
    """An administrator would not know which listener failed."""
    async with serving() as edge:
        listener = Listener(
            ListenerSettings((TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", edge.port))),
            edge.application.endpoint(["health"]),
        )
        with pytest.raises(OSError, match=f"127.0.0.1 port {edge.port}"):
            await listener.start()


async def test_tcp_connections_do_not_delay() -> None:
    """Every small answer on a reused connection would take 40 ms longer."""
    async with serving() as edge, client(edge) as ask:
        await ask.get("/health")
        (connection,) = edge.listener._state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def tls_files(folder: Path) -> TlsFiles:
    """Make a certificate for localhost."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    return TlsFiles(certificate, key)


async def test_tls(tmp_path: Path) -> None:
    """Servers without a proxy would send passwords in clear, or not at all."""
    files = await tls_files(tmp_path)
    async with serving(tls=files) as edge:
        context = ssl.create_default_context(cafile=str(files.certificate))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", edge.port, ssl=context, server_hostname="localhost"
        )
        writer.write(f"GET {V3}/rooms/a/state/b HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await read_answer(reader)).json["scheme"] == "https"
        writer.close()
        edge.listener.reload_certificate()
        async with client(edge) as ask:  # clear text on a TLS port
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await ask.get("/health")


async def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """An administrator would read "Permission denied", and not of what."""
    files = await tls_files(tmp_path)
    with pytest.raises(OSError, match=r"cert\.pem with the key .*other\.pem: No such file"):
        tls_context(TlsFiles(files.certificate, tmp_path / "other.pem"))
    (tmp_path / "other.pem").write_text("no key")
    with pytest.raises(OSError, match=r"cert\.pem with the key .*other\.pem: "):
        tls_context(TlsFiles(files.certificate, tmp_path / "other.pem"))


async def test_who_begins_no_handshake_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are counted nowhere could use up all files of the process."""
    monkeypatch.setattr("ranvier.http.listeners._HANDSHAKE_S", 0.1)
    async with serving(tls=await tls_files(tmp_path)) as edge, client(edge) as silent:
        assert await asyncio.wait_for(silent.reader.read(), 20) == b""


@pytest.mark.parametrize("busy_s", [0.0, 0.05])
async def test_who_is_connected_when_the_server_stops_is_answered(tmp_path: Path, busy_s: float) -> None:
    """A proxy's client would be told 502 for a message, as the worker that it was sent to restarts."""
    path = tmp_path / "client.sock"
    async with serving(path=path) as edge:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(MAYBE)
            for _ in range(3):  # what else there is to do in these turns
                asyncio.get_running_loop().call_soon(time.sleep, busy_s)
            await edge.listener.stop(grace_s=20)
            answer = sock.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


async def test_requests_in_flight_finish_when_the_server_stops() -> None:
    """A restart would break off what users were doing."""
    async with serving() as edge, client(edge) as ask:
        waiting = asyncio.create_task(ask.get(f"{V3}/finish"))
        await asyncio.wait_for(edge.waiting.begun.wait(), 5)
        stopping = asyncio.create_task(edge.listener.stop(grace_s=30))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:  # for a moment who comes is taken, and its answer is the last
                async with client(edge) as late:
                    assert (await late.get("/health")).headers["connection"] == "close"
        edge.waiting.release.set()
        answer = await waiting
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await stopping
        assert edge.listener.connections == 0


async def test_stopping_does_not_wait_for_ever() -> None:
    """One stuck request would hold up a restart."""
    async with serving() as edge, client(edge) as ask:
        waiting = asyncio.create_task(ask.get(f"{V3}/finish"))
        await asyncio.wait_for(edge.waiting.begun.wait(), 5)
        await asyncio.wait_for(edge.listener.stop(grace_s=0.05), 5)
        answer = await waiting
        assert (answer.status, answer.json["errcode"]) == (503, "M_UNKNOWN")


async def test_heads_are_bounded_in_size() -> None:
    """One client could fill the server's memory with a header that never ends."""
    limits = ConnectionLimits(max_head_bytes=4096)
    async with serving(limits=limits) as edge:
        for data in (
            b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 50) for i in range(200)) + b"\r\n",
            b"GET /health HTTP/1.1\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        ):
            async with client(edge) as ask:
                answer = await ask.raw(data)
                assert (answer.status, answer.json["errcode"]) == (431, "M_TOO_LARGE")
        async with client(edge) as ask:
            ask.writer.write(b"GET /health HTTP/1.1\r\nX: ")
            refusal = asyncio.create_task(read_answer(ask.reader))
            while not refusal.done():
                ask.writer.write(b"a" * 100)
                await asyncio.wait([refusal], timeout=0.01)
            assert (await refusal).status == 431


async def test_slow_heads_and_silent_connections_are_closed() -> None:
    """Connections that say nothing would take the places of those that do."""
    async with serving(limits=ConnectionLimits(head_timeout_s=0.05)) as edge:
        async with client(edge) as ask:
            assert await asyncio.wait_for(ask.reader.read(), 5) == b""
        async with client(edge) as ask:
            answer = await ask.raw(b"GET /health HT")
            assert answer.status == 408
        async with client(edge) as ask:
            assert (await ask.get("/health")).status == 200
            answer = await ask.raw(b"GET /health HTTP/1.1\r\nHost")
            assert answer.status == 408


async def test_idle_connections_are_closed() -> None:
    """Connections that nobody uses any more would pile up."""
    async with serving(limits=ConnectionLimits(keep_alive_s=0)) as edge, client(edge) as ask:
        assert (await ask.get("/health")).status == 200
        assert await asyncio.wait_for(ask.reader.read(), 5) == b""


async def test_connections_are_bounded() -> None:
    """A flood of connections would end the process instead of being refused."""
    async with serving(limits=ConnectionLimits(max_connections=1)) as edge, client(edge) as first:
        await first.get("/health")
        async with client(edge) as second:
            answer = await asyncio.wait_for(read_answer(second.reader), 5)
            assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert (await first.get("/health")).status == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Some proxies' clients would get another request's answer."""
    async with serving() as edge, client(edge) as ask:
        ask.writer.write(
            b"".join(f"GET {V3}/rooms/{i}/state/x HTTP/1.1\r\nHost: a\r\n\r\n".encode() for i in range(20))
        )
        for i in range(20):
            assert (await read_answer(ask.reader)).json["params"]["room_id"] == str(i)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FLY / HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET http://a HTTP/1.1\r\n\r\n",
        b"GET \xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_not_http(data: bytes) -> None:
    """A port scan would fill the log with failures, or a smuggled request would slip by the proxy."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.raw(data)
        assert answer.status in (400, 404)
        assert answer.json["errcode"].startswith("M_")


async def test_an_upgrade_is_ignored() -> None:
    """A browser's websocket attempt would be a failure in the log."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/maybe", Connection="Upgrade", Upgrade="websocket")
        assert answer.status == 200


_TOKEN = st.text(alphabet="abcABC-_", min_size=1, max_size=12)
_VALUE = st.binary(max_size=60).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
_TARGET = st.binary(max_size=60).map(lambda raw: b"/" + raw.replace(b" ", b"").replace(b"\n", b""))


async def test_whatever_comes_is_never_a_500() -> None:
    """Some request of a stranger would be a failure of the server."""
    known = [
        f"{V3}/{name}".encode() for name in ("maybe", "note", "object", "upload", "query", "rooms/x/state/y")
    ]
    requests: list[bytes] = []

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"]),
        st.sampled_from(known) | _TARGET,
        st.binary(max_size=20),
        st.dictionaries(
            _TOKEN | st.sampled_from(["Authorization", "X-Forwarded-For", "Cookie"]), _VALUE, max_size=4
        ),
        st.binary(max_size=100)
        | st.text(alphabet='{}[]":,0123456789enulltruefalse\\ ', max_size=80).map(str.encode),
    )
    def collect(method: str, target: bytes, query: bytes, headers: dict[str, bytes], body: bytes) -> None:
        target += b"?" + query.replace(b" ", b"").replace(b"\n", b"") if query else b""
        head = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: a", b"Connection: close"]
        head += [name.encode() + b": " + value for name, value in headers.items()]
        requests.append(b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body)

    collect()
    async with serving(x_forwarded=True, allow_query_token=True) as edge:
        for data in requests:
            async with client(edge) as ask:
                answer = await ask.raw(data)
                assert answer.status < 500, data
                if answer.body:
                    orjson.loads(answer.body)
