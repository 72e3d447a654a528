"""Providers that do not do what they should."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from aiohttp import web

from ranvier.http.limits import Rate
from ranvier.users.provider_http import _answer
from tests.account_server import account_server
from tests.oidc_provider import CLIENT, Browser, Provider, jwt, running_provider
from tests.sso_server import plain, settings, sso_server

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

WRONG_TOKENS: list[dict[str, Any]] = [
    {"iss": "https://evil.example"},
    {"iss": None},
    {"aud": "another"},
    {"aud": ["another"]},
    {"aud": ["ranvier", "another"]},
    {"aud": ["ranvier", "another"], "azp": "another"},
    {"azp": "another"},
    {"aud": None},
    {"aud": {"ranvier": 1}},
    {"exp": 1_600_000_000},
    {"exp": None},
    {"exp": True},
    {"iat": 1_800_000_000},
    {"iat": "now"},
    {"nonce": "another"},
    {"nonce": None},
    {"nonce": "ä"},
    {"sub": ""},
    {"sub": None},
    {"sub": "x" * 256},
    {"sub": "a\0b"},
]


@pytest.mark.parametrize("claims", WRONG_TOKENS)
async def test_a_token_that_is_not_for_this_login_is_none(
    database: str, provider: Provider, claims: dict[str, Any]
) -> None:
    """Whoever has a token of another app, or an old one, would be in."""
    async with sso_server(database, provider) as server:
        provider.id_token = claims
        reply = await Browser(server.browse).log_in()
        assert reply.status == 502
        assert await server.core.database.fetchval("SELECT count(*) FROM accounts") == 0
        provider.id_token = {"aud": ["ranvier", "another"], "azp": "ranvier"}
        assert (await Browser(server.browse).log_in()).status == 302


@pytest.mark.parametrize("token", [None, 1, "", "a.b", "a.b.c", "a.b.c.d.e", "a.ä.c", jwt({})[:-1] + ".x"])
async def test_what_is_no_token_is_none(database: str, provider: Provider, token: Any) -> None:
    """The server would fail, or let somebody in whom nobody vouches for."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"access_token": "x", "token_type": "Bearer", "id_token": token})

    async with sso_server(database, provider) as server:
        provider.answers["token"] = answer
        assert (await Browser(server.browse).log_in()).status == 502


APART, JOINED = "{{ user.staff }}@{{ user.iss }}", "{{ user.staff ~ '@' ~ user.iss }}"


@pytest.mark.parametrize(
    ("template", "claim"),
    [
        *((APART, claim) for claim in (..., None, "", " ", [], ["a"], {}, True, 1.5)),
        *((JOINED, claim) for claim in (..., None, "", " ")),
    ],
)
async def test_people_without_a_claim_do_not_become_one_person(
    database: str, provider: Provider, template: str, claim: Any
) -> None:
    """Everybody who lacks what the subject is made of would be in one account, the first one's."""
    async with sso_server(database, provider, mapping={"subject_template": template}) as server:
        provider.id_token = {} if claim is ... else {"staff": claim}
        assert (await Browser(server.browse).log_in()).status == 502
        assert await server.core.database.fetchval("SELECT count(*) FROM identities") == 0
        provider.id_token = {"staff": 17}
        assert (await Browser(server.browse).log_in()).status == 302
        subject = await server.core.database.fetchval("SELECT subject FROM identities")
        assert subject == f"17@{provider.url}"


async def test_userinfo_of_somebody_else_is_refused(database: str, provider: Provider) -> None:
    """Names, and with them accounts, would be mixed up."""
    async with sso_server(database, provider, user_profile_method="userinfo_endpoint") as server:
        provider.userinfo = {"sub": "somebody else"}
        assert (await Browser(server.browse).log_in()).status == 502


@pytest.mark.parametrize(
    ("name", "trusted", "status"), [("localhost", True, 302), ("localhost", False, 502), ("other", True, 502)]
)
async def test_a_provider_is_known_by_its_certificate(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool, status: int
) -> None:
    """Whoever is on the line between would say who logs in: no other signature is looked at."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    make += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "2"]
    make += ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running_provider(tls) as provider, sso_server(database, provider) as server:
        browser = Browser(server.browse)
        reply = await browser.get(f"/_matrix/client/v3/login/sso/redirect?redirectUrl={quote(CLIENT)}")
        if reply.status == 302:
            reply = await browser.get(await browser.at_provider(reply.location))
        assert reply.status == status


async def slow(request: web.Request) -> web.StreamResponse:
    """Answer never."""
    await asyncio.sleep(3600)
    raise AssertionError


async def dripping(request: web.Request) -> web.StreamResponse:
    """Answer a byte at a time, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def dripping_head(request: web.Request) -> web.StreamResponse:
    """Begin to answer, and never come to an end of the first header."""
    transport = request.transport
    assert transport is not None
    transport.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not transport.is_closing():
        transport.write(b"x")
        await asyncio.sleep(0.05)
    return web.Response()


async def large(request: web.Request) -> web.StreamResponse:
    """Answer much."""
    return web.json_response({"x": "y" * 10_000_000})


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """Send the server on, with what it knows."""
    raise web.HTTPTemporaryRedirect(f"{request.url.origin()}/elsewhere")


async def no_json(request: web.Request) -> web.StreamResponse:
    """Answer a page."""
    return web.Response(text="<html>", content_type="text/html")


async def a_list(request: web.Request) -> web.StreamResponse:
    """Answer another kind of JSON."""
    return web.json_response([1])


async def down(request: web.Request) -> web.StreamResponse:
    """Answer nothing."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


FAULTS = [slow, dripping, dripping_head, large, elsewhere, no_json, a_list, down]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["openid-configuration", "token"])
async def test_a_provider_that_fails_is_told_to_the_user(
    database: str, provider: Provider, caplog: pytest.LogCaptureFixture, fault: Answer, at: str
) -> None:
    """People would look at a blank page, and everybody else's logins would wait."""
    async with sso_server(database, provider, timeout_s=4) as server:
        browser = Browser(server.browse)
        path = f"/_matrix/client/v3/login/sso/redirect?redirectUrl={quote(CLIENT)}"
        if at == "token":
            path = await browser.at_provider(await browser.begin())
        provider.answers[at] = fault
        with caplog.at_level(logging.DEBUG, "ranvier"):
            reply = await browser.get(path)
        assert reply.status == 502
        assert "Try again" in plain(reply)
        assert "A login at a provider failed, corp: it" in caplog.text
        for secret in ("s3cret", "at-", *parse_qs(urlsplit(path).query).get("code", [])):
            assert secret not in caplog.text.replace(path, "")
        assert "elsewhere" not in provider.asked
        del provider.answers[at]
        server.clock.ms += 6000
        assert (await Browser(server.browse).log_in()).status == 302


async def test_many_who_wait_for_a_slow_provider_leave_the_others_alone(
    database: str, provider: Provider
) -> None:
    """A provider that hangs would have the whole server hang."""
    async with sso_server(database, provider) as server:
        browsers = [Browser(server.browse) for _ in range(20)]
        backs = [await browser.at_provider(await browser.begin()) for browser in browsers]
        released = asyncio.Event()

        async def late(request: web.Request) -> web.StreamResponse:
            await released.wait()
            return web.json_response({}, status=500)

        provider.answers["token"] = late
        pairs = zip(browsers, backs, strict=True)
        asked = [asyncio.ensure_future(browser.get(back)) for browser, back in pairs]
        while sum(it.done() for it in asked) < 4:
            await asyncio.wait([it for it in asked if not it.done()], return_when=asyncio.FIRST_COMPLETED)
        assert [it.result().status for it in asked if it.done()] == [503] * 4
        assert (await server.get("/v3/login")).status == 200
        released.set()
        assert sorted([(await it).status for it in asked]) == [502] * 16 + [503] * 4


async def test_heads_that_never_end_hold_nobody_up(database: str, provider: Provider) -> None:
    """Nobody could log in for hours after a provider had such a moment."""
    async with sso_server(database, provider, timeout_s=4) as server:
        browsers = [Browser(server.browse) for _ in range(16)]
        backs = [await browser.at_provider(await browser.begin()) for browser in browsers]
        provider.answers["token"] = dripping_head
        pairs = zip(browsers, backs, strict=True)
        replies = await asyncio.gather(*(browser.get(back) for browser, back in pairs))
        assert {reply.status for reply in replies} == {502}
        del provider.answers["token"]
        assert (await Browser(server.browse).log_in()).status == 302


async def test_a_provider_that_hangs_is_no_matter_to_people_of_another(
    database: str, provider: Provider
) -> None:
    """A stranger who asks for the login at one provider would shut out all people of the others."""
    async with running_provider() as other:
        text = settings(provider.settings(), other.settings(idp_id="club"))
        async with account_server(database, text, provider_timeout_s=60) as server:
            provider.now_s = lambda: server.clock.now_ms() / 1000
            released = asyncio.Event()

            async def late(request: web.Request) -> web.StreamResponse:
                await released.wait()
                return web.json_response({}, status=500)

            other.answers["openid-configuration"] = late
            path = f"/_matrix/client/v3/login/sso/redirect/club?redirectUrl={quote(CLIENT)}"
            asked = [asyncio.ensure_future(Browser(server.browse).get(path)) for _ in range(40)]
            while not other.asked:
                await asyncio.sleep(0.01)
            browser = Browser(server.browse)
            back = await browser.at_provider(await browser.begin(way="/corp"))
            assert (await browser.get(back)).status == 302
            assert not any(it.done() for it in asked)
            released.set()
            assert {(await it).status for it in asked} == {502}
            # It was asked once for all of them, and the next have the same answer for a while.
            assert (await Browser(server.browse).get(path)).status == 502
            assert other.asked == ["openid-configuration"]
            server.clock.ms += 6000
            del other.answers["openid-configuration"]
            assert (await Browser(server.browse).get(path)).status == 302


async def test_many_who_come_at_once_find_the_provider_by_one_question(
    database: str, provider: Provider
) -> None:
    """After a restart some of those who log in in the morning would be told to try again."""
    async with sso_server(database, provider) as server:
        await asyncio.gather(*(Browser(server.browse).begin() for _ in range(40)))
        assert provider.asked == ["openid-configuration"]


async def test_what_was_known_of_a_provider_does_while_its_document_is_away(
    database: str, provider: Provider
) -> None:
    """Nobody could log in, although everything that a login needs is there."""
    async with sso_server(database, provider) as server:
        assert (await Browser(server.browse).log_in()).status == 302
        provider.answers["openid-configuration"] = down
        server.clock.ms += 3601 * 1000
        for _ in range(3):
            assert (await Browser(server.browse).log_in()).status == 302
        assert provider.asked.count("openid-configuration") == 2
        del provider.answers["openid-configuration"]
        server.clock.ms += 61 * 1000
        await Browser(server.browse).begin()
        assert provider.asked.count("openid-configuration") == 3


async def test_who_has_the_bad_luck_of_a_failing_provider_need_not_wait(
    database: str, provider: Provider
) -> None:
    """A whole office would be kept out for minutes after its provider is back."""
    rates = {"rc_login.failed_attempts": Rate(0.01, 1)}
    async with sso_server(database, provider, rates=rates) as server:
        provider.answers["token"] = down
        for _ in range(3):
            assert (await Browser(server.browse).log_in()).status == 502
        del provider.answers["token"]
        assert (await Browser(server.browse).log_in()).status == 302
        # Who brings what is no code there does wait.
        browser = Browser(server.browse)
        back = (await browser.at_provider(await browser.begin())).replace("code=", "code=x")
        assert (await browser.get(back)).status == 502
        assert (await Browser(server.browse).log_in()).status == 429


@pytest.mark.parametrize(
    ("document", "works"),
    [
        ({"issuer": "https://evil.example"}, False),
        ({"token_endpoint": "http://provider.example/token"}, False),
        ({"token_endpoint": 7}, False),
        ({"authorization_endpoint": "javascript:alert(1)"}, False),
        ({}, True),
    ],
)
async def test_a_discovery_document_is_the_providers_own(
    database: str, provider: Provider, document: dict[str, Any], works: bool
) -> None:
    """Secrets would be sent to whoever answers in the provider's place, or over the line in the open."""

    async def answer(request: web.Request) -> web.Response:
        names = ("authorization_endpoint", "token_endpoint")
        whole = {name: f"{provider.url}/{name.split('_')[0]}" for name in names}
        whole["authorization_endpoint"] = f"{provider.url}/authorize?realm=a"
        return web.json_response({"issuer": provider.url, **whole, **document})

    async with sso_server(database, provider) as server:
        provider.answers["openid-configuration"] = answer
        browser = Browser(server.browse)
        reply = await browser.get(f"/_matrix/client/v3/login/sso/redirect?redirectUrl={quote(CLIENT)}")
        if reply.status == 302:
            reply = await browser.get(await browser.at_provider(reply.location))
        assert reply.status == (302 if works else 502)


async def test_the_answer_of_another_provider_is_refused(database: str, provider: Provider) -> None:
    """A provider could have the code of another one's user exchanged in its own name."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        back = await browser.at_provider(await browser.begin())
        reply = await browser.get(back.replace("iss=http", "iss=https"))
        assert reply.status == 502
        assert provider.asked.count("token") == 0


async def test_who_names_itself_does_so_always(database: str, provider: Provider) -> None:
    """Another provider could have a code of this one come to it, by leaving out whose it is."""
    provider.document = {"authorization_response_iss_parameter_supported": True}
    async with sso_server(database, provider) as server:
        assert (await Browser(server.browse).log_in()).status == 302
        asked = provider.asked.count("token")
        provider.names_itself = False
        assert (await Browser(server.browse).log_in()).status == 502
        assert provider.asked.count("token") == asked


async def test_a_provider_with_an_address_of_its_own_has_no_code_of_another(
    database: str, provider: Provider
) -> None:
    """A hostile provider would lead somebody on to an honest one, get their code and be them here."""
    async with running_provider() as hostile:
        provider.names_itself = hostile.names_itself = False
        text = settings(
            provider.settings(own_callback=True, mapping={"confirm_localpart": True}),
            hostile.settings(idp_id="club"),
        )
        async with account_server(database, text) as server:
            provider.now_s = hostile.now_s = lambda: server.clock.now_ms() / 1000
            browser = Browser(server.browse)
            honest = await browser.at_provider(await browser.begin(way="/corp"))
            other = await browser.at_provider(await browser.begin(way="/club"))
            shared, own = "/_synapse/client/oidc/callback?", "/_synapse/client/oidc/callback/corp?"
            assert honest.startswith(own)
            assert other.startswith(shared)
            queries = honest.partition("?")[2], other.partition("?")[2]
            for wrong in (
                shared + queries[0],
                own + queries[1],
                f"/_synapse/client/oidc/callback/club?{queries[1]}",
                f"/_synapse/client/oidc/callback/nobody?{queries[0]}",
            ):
                assert (await browser.get(wrong)).status == 502
            assert "token" not in (*provider.asked, *hostile.asked)
            assert (await browser.get(other)).status == 302
            reply = await browser.get(honest)
            # From where it is one more step up to the other pages.
            assert reply.location.startswith("../../pick_username/account_details?state=")


@pytest.mark.parametrize(
    ("methods", "sent"), [(["S256"], True), (None, True), (["plain"], False), ([], False), ("S256", False)]
)
async def test_a_code_is_good_only_with_what_the_login_was_begun_with(
    database: str, provider: Provider, methods: Any, sent: bool
) -> None:
    """Somebody else's code would be good in one's own login, where the provider says little of itself."""
    provider.document = {"code_challenge_methods_supported": methods}
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        query = parse_qs(urlsplit(await browser.begin()).query)
        assert ("code_challenge" in query) is sent
        assert (await Browser(server.browse).log_in()).status == 302


async def test_a_provider_may_say_that_it_goes_on() -> None:
    """Behind a proxy that answers 100 first, a login would fail now and then, with its code spent."""
    reader = asyncio.StreamReader()
    reading = asyncio.create_task(_answer(reader))
    for piece in (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"\r\n{}"):
        reader.feed_data(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    reader.feed_eof()
    assert await reading == (200, b"{}")
