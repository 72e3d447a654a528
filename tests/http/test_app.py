"""The edge over real sockets: who may ask, what comes back, and what a hostile client gets."""

from __future__ import annotations

import asyncio
import logging

import pytest

from ranvier.http.app import Timeouts
from tests.http.edge import client, serving

V3 = "/_matrix/client/v3"


async def test_a_user_is_known_by_the_token() -> None:
    """Without this nobody can use the server."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/whoami", Authorization="Bearer alice")
        assert (answer.status, answer.json) == (200, {"user_id": "@alice:test"})
        assert answer.headers["content-type"] == "application/json"
        old = await ask.get("/_matrix/client/r0/whoami", Authorization="bearer  alice")
        assert old.json == {"user_id": "@alice:test"}


@pytest.mark.parametrize(
    ("path", "token", "status", "errcode"),
    [
        ("whoami", None, 401, "M_MISSING_TOKEN"),
        ("whoami", "Bearer ", 401, "M_MISSING_TOKEN"),
        ("whoami", "Basic alice", 401, "M_MISSING_TOKEN"),
        ("whoami", "Bearer nobody", 401, "M_UNKNOWN_TOKEN"),
        ("whoami", "Bearer \xff", 401, "M_UNKNOWN_TOKEN"),
        ("whoami", "Bearer guest", 403, "M_GUEST_ACCESS_FORBIDDEN"),
        ("guest", "Bearer guest", 200, None),
        ("admin", "Bearer alice", 403, "M_FORBIDDEN"),
        ("admin", "Bearer admin", 200, None),
        ("maybe", None, 200, None),
        ("maybe", "Bearer nobody", 401, "M_UNKNOWN_TOKEN"),
    ],
)
async def test_tokens(path: str, token: str | None, status: int, errcode: str | None) -> None:
    """A client would not know whether to log in again, or a stranger would get in."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/{path}", **({"Authorization": token} if token else {}))
        assert (answer.status, answer.json.get("errcode")) == (status, errcode)


async def test_an_expired_token_is_a_soft_logout() -> None:
    """A client would throw its encryption keys away instead of refreshing its token."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/whoami", Authorization="Bearer expired")
        assert (answer.status, answer.json["soft_logout"]) == (401, True)


async def test_tokens_in_the_query_need_the_setting() -> None:
    """Tokens would end in proxies' logs although the administrator forbade them there."""
    async with serving() as edge, client(edge) as ask:
        assert (await ask.get(f"{V3}/whoami?access_token=alice")).json["errcode"] == "M_MISSING_TOKEN"
    async with serving(allow_query_token=True) as edge, client(edge) as ask:
        assert (await ask.get(f"{V3}/whoami?access_token=alice")).status == 200


async def test_every_answer_is_for_browsers_too() -> None:
    """Web clients would show 'cannot reach the server' for every error."""
    async with serving() as edge, client(edge) as ask:
        for target in (f"{V3}/maybe", f"{V3}/refuse", f"{V3}/fail", "/nowhere", f"{V3}/download", "/health"):
            answer = await ask.get(target)
            assert answer.headers["access-control-allow-origin"] == "*", target
            assert "Authorization" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize("path", [f"{V3}/whoami", "/nowhere", f"{V3}/note"])
async def test_preflight(path: str) -> None:
    """Web clients' browsers would refuse to send the real request."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.ask("OPTIONS", path)
        assert (answer.status, answer.body) == (204, b"")
        assert "PUT" in answer.headers["access-control-allow-methods"]


async def test_unknown_paths_and_methods() -> None:
    """A client could not tell a feature that the server lacks from one that failed."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get("/_matrix/client/v3/nothing")
        assert (answer.status, answer.json["errcode"]) == (404, "M_UNRECOGNIZED")
        answer = await ask.ask("DELETE", f"{V3}/rooms/!a/state/b")
        assert (answer.status, answer.json["errcode"]) == (405, "M_UNRECOGNIZED")
        assert answer.headers["allow"] == "GET, OPTIONS, PUT"
        assert (await ask.ask("HEAD", f"{V3}/maybe")).status == 405
        assert (await ask.get(f"{V3}/maybe")).status == 200  # the connection goes on


async def test_path_pieces_are_decoded_one_by_one() -> None:
    """Rooms, users and events with a slash or an accent in their names could not be reached."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/rooms/%21a%2Fb%3Ax/state/m.%C3%A9t%C3%A9")
        assert answer.json["params"] == {"room_id": "!a/b:x", "event_type": "m.été"}
        answer = await ask.get(f"{V3}/rooms/%FF/state/x")
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_mistakes_of_ours_are_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    """A user would see the server's inside, or the administrator would not find the cause."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/fail")
        assert (answer.status, answer.json["errcode"]) == (500, "M_UNKNOWN")
        assert "secret" not in answer.body.decode()
        assert "secret of the server" in caplog.text
        assert (await ask.get(f"{V3}/refuse")).json == {"errcode": "M_FORBIDDEN", "error": "Not you"}


async def test_a_header_cannot_be_smuggled_into_an_answer() -> None:
    """A link could set cookies or redirect for the server's own address."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/echo?value=a%0d%0aSet-Cookie:%20x=1")
        assert answer.status == 500
        assert "set-cookie" not in answer.headers
        assert (await ask.get(f"{V3}/echo?value=fine")).headers["x-echo"] == "fine"


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ("limit=0", "M_INVALID_PARAM"),
        ("limit=101", "M_INVALID_PARAM"),
        ("limit=ten", "M_INVALID_PARAM"),
        ("limit=1_0", "M_INVALID_PARAM"),
        ("limit=%D9%A1", "M_INVALID_PARAM"),
        ("limit=" + "9" * 5000, "M_INVALID_PARAM"),
        ("full=yes", "M_INVALID_PARAM"),
        ("dir=x", "M_INVALID_PARAM"),
        ("from=%FF", "M_INVALID_PARAM"),
        ("a=1&" * 300, "M_INVALID_PARAM"),
    ],
)
async def test_wrong_query_parameters(query: str, errcode: str) -> None:
    """A client's mistake would be a silent wrong answer or a failure of the server."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/query?{query}")
        assert (answer.status, answer.json["errcode"]) == (400, errcode)


async def test_query_parameters() -> None:
    """Paging, filters and lists of servers would be ignored."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/query?limit=5&full=true&dir=f&via=a&via=b%20c&from=s1%2B2+3")
        assert answer.json == {"limit": 5, "full": True, "dir": "f", "via": ["a", "b c"], "from": "s1+2 3"}
        answer = await ask.get(f"{V3}/query")
        assert answer.json == {"limit": 10, "full": False, "dir": "b", "via": [], "from": None}


async def test_rate_limits_say_when_to_come_back() -> None:
    """Clients would hammer on, or one user would take the server from the others."""
    async with serving() as edge, client(edge) as ask:
        for _ in range(2):
            assert (await ask.get(f"{V3}/limited")).status == 200
        answer = await ask.get(f"{V3}/limited")
        assert (answer.status, answer.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
        assert 9000 < answer.json["retry_after_ms"] <= 10_000
        assert answer.headers["retry-after"] == "10"
        for token in ("alice", "bridge", "bridge", "bridge"):
            assert (await ask.get(f"{V3}/limited", Authorization=f"Bearer {token}")).status == 200


async def test_bodies_are_bounded_in_size() -> None:
    """One client could fill the server's memory."""
    async with serving() as edge:
        async with client(edge) as ask:
            answer = await ask.raw(
                f"PUT {V3}/note HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".encode()
            )
            assert (answer.status, answer.json["errcode"]) == (413, "M_TOO_LARGE")
        async with client(edge) as ask:
            head = f"PUT {V3}/note HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            answer = await ask.raw(head + b"1000\r\n" + b"a" * 0x1000 + b"\r\n" + b"2000\r\n" + b"a" * 0x2000)
            assert (answer.status, answer.json["errcode"]) == (413, "M_TOO_LARGE")
            assert answer.headers["connection"] == "close"
        async with client(edge) as ask:
            answer = await ask.ask("POST", f"{V3}/upload", b"a" * 300_001)
            assert (answer.status, answer.json["errcode"]) == (413, "M_TOO_LARGE")
        async with client(edge) as ask:
            assert (await ask.ask("POST", f"{V3}/upload", b"a" * 300_000)).json == {"size": 300_000}


async def test_bodies_in_chunks() -> None:
    """Clients that send chunked bodies (many do) could not talk."""
    async with serving() as edge, client(edge) as ask:
        head = f"PUT {V3}/note HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        answer = await ask.raw(head + b'5\r\n{"tex\r\n9\r\nt": "hi"}\r\n0\r\n\r\n')
        assert answer.json == {"text": "hi", "stars": 0}


async def test_slow_bodies_time_out() -> None:
    """Clients that dawdle on purpose could take all connections."""
    async with serving(timeouts=Timeouts(body_s=0.05)) as edge, client(edge) as ask:
        answer = await ask.raw(
            f'PUT {V3}/note HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{{"te'.encode()
        )
        assert (answer.status, answer.headers["connection"]) == (408, "close")


async def test_downloads_come_in_chunks() -> None:
    """Large files would be broken or held in memory whole."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get(f"{V3}/download")
        assert (len(answer.body), answer.headers["content-type"]) == (500_000, "image/png")


async def test_an_answer_that_breaks_is_seen_as_broken() -> None:
    """Half a file would look like a whole one, or a mistake of ours like an answer."""
    async with serving() as edge:
        async with client(edge) as ask:
            assert (await ask.get(f"{V3}/unencodable")).json["errcode"] == "M_UNKNOWN"
        async with client(edge) as ask:
            with pytest.raises(asyncio.IncompleteReadError):
                await ask.get(f"{V3}/breaks")


async def test_a_download_that_nobody_takes_is_given_up() -> None:
    """Clients that ask for files and never read them would take all memory."""
    async with serving(timeouts=Timeouts(chunk_s=0.05)) as edge, client(edge) as ask:
        ask.writer.write(f"GET {V3}/endless HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await ask.reader.readuntil(b"\r\n\r\n")
        ask.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.wait_for(edge.waiting.release.wait(), 10)
        await edge.idle()


async def test_a_client_that_leaves_its_long_poll_cancels_it() -> None:
    """Waiting syncs of phones that lost their network would pile up."""
    async with serving() as edge:
        async with client(edge) as ask:
            ask.writer.write(f"GET {V3}/wait HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await asyncio.wait_for(edge.waiting.begun.wait(), 5)
        await asyncio.wait_for(edge.waiting.cancelled.wait(), 5)
        await edge.idle()


async def test_other_handlers_finish_what_they_began() -> None:
    """A message sent in a tunnel would be half stored."""
    async with serving() as edge:
        async with client(edge) as ask:
            ask.writer.write(f"GET {V3}/finish HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await asyncio.wait_for(edge.waiting.begun.wait(), 5)
        async with client(edge) as ask:  # accepted after the other was closed
            await ask.get("/health")
        assert edge.application.in_flight == 1
        edge.waiting.release.set()
        await edge.idle()
        assert not edge.waiting.cancelled.is_set()


async def test_long_polls_answer() -> None:
    """Nobody would see new messages."""
    async with serving() as edge, client(edge) as ask:
        edge.waiting.release.set()
        assert (await ask.get(f"{V3}/wait")).json == {"waited": True}
        assert (await ask.get(f"{V3}/wait")).json == {"waited": True}


async def test_the_log_has_a_line_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """An administrator could not see what happens, or would keep users' tokens in the log."""
    caplog.set_level(logging.INFO, "ranvier.http.requests")
    async with serving(allow_query_token=True) as edge, client(edge) as ask:
        await ask.get(f"{V3}/whoami?access_token=alice&a=b", Authorization="Bearer alice")
        await ask.get(f"{V3}/query?acc%65ss_token=hidden&x=1")
        await ask.get(f"{V3}/fail")
    lines = [record for record in caplog.records if record.name == "ranvier.http.requests"]
    text = lines[0].getMessage()
    assert f"GET {V3}/whoami?access_token=<redacted>&a=b 200" in text
    assert "user=@alice:test ip=127.0.0.1" in text
    assert "hidden" not in lines[1].getMessage()
    assert lines[2].levelno == logging.WARNING


async def test_addresses_behind_a_proxy() -> None:
    """All users would share one rate limit, or anybody could pretend to be somebody else's address."""
    target = f"{V3}/rooms/a/state/b"
    forwarded = {"X_Forwarded_For": "2001:db8::1, 10.0.0.1", "X_Forwarded_Proto": "https"}
    async with serving(x_forwarded=True) as edge, client(edge) as ask:
        answer = (await ask.get(target, **forwarded)).json
        assert (answer["ip"], answer["scheme"]) == ("2001:db8::1", "https")
        assert (await ask.get(target, X_Forwarded_For="<b>")).json["ip"] == "127.0.0.1"
    async with serving() as edge, client(edge) as ask:
        answer = (await ask.get(target, **forwarded)).json
        assert (answer["ip"], answer["scheme"]) == ("127.0.0.1", "http")


async def test_health_and_metrics() -> None:
    """A load balancer would send requests to a server that cannot answer; nobody could watch it."""
    async with serving() as edge, client(edge) as ask:
        answer = await ask.get("/health")
        assert (answer.status, answer.body) == (200, b"OK")
        edge.ready[0] = False
        assert (await ask.get("/health")).status == 503
        await ask.get(f"{V3}/whoami", Authorization="Bearer alice")
        text = (await ask.get("/metrics")).body.decode()
        assert 'ranvier_http_requests_total{endpoint="whoami",method="GET",status="200"} 1.0' in text
        assert "ranvier_http_requests_in_flight 1.0" in text
        assert 'ranvier_http_request_seconds_count{endpoint="whoami"} 1.0' in text
        assert "process_cpu_seconds_total" in text


async def test_a_listener_serves_only_its_resources() -> None:
    """Metrics meant for the inside would be public."""
    async with serving(resources=("health",)) as edge, client(edge) as ask:
        assert (await ask.get("/health")).status == 200
        assert (await ask.get("/metrics")).status == 404
        assert (await ask.get(f"{V3}/maybe")).status == 404
