"""Logins that somebody else wishes for, and providers that do not do what they should."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from aiohttp import web

from ranvier.config.sso import SsoConfig
from ranvier.processes.sso import sealing_key
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey
from ranvier.users.client_urls import checked_url, origin_of, with_login_token
from ranvier.users.sso import whitelisted
from tests.core import KEY, running_core
from tests.oidc_provider import CLIENT, Browser, Provider, jwt, login_token, running_provider
from tests.test_sso import PICK, plain, sso_server

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """Give a provider where Alice is logged in."""
    async with running_provider() as running:
        yield running


async def test_a_login_belongs_to_the_browser_that_began_it(database: str, provider: Provider) -> None:
    """Who follows an attacker's link would be logged in to the attacker's account, and tell it everything."""
    async with sso_server(database, provider) as server:
        attacker, victim = Browser(server.browse), Browser(server.browse)
        back = await attacker.at_provider(await attacker.begin())
        await victim.begin()
        own = dict(victim.cookies)
        query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        state = next(iter(own)).removeprefix("ranvier_sso_")
        for wrong in (
            query,
            {**query, "state": ""},
            {**query, "state": state},
            {**query, "state": state + query["state"][len(state) :]},
            {**query, "state": "ä" * 43},
            {name: value for name, value in query.items() if name != "state"},
        ):
            reply = await victim.get(f"{urlsplit(back).path}?{urlencode(wrong)}")
            assert reply.status == 400, wrong
            assert "another browser" in plain(reply)
        assert victim.cookies == own
        assert provider.asked.count("token") == 0


async def test_somebody_elses_cookie_under_ones_own_name_is_no_help(
    database: str, provider: Provider
) -> None:
    """An attacker who can set cookies would choose the login that one finishes."""
    async with sso_server(database, provider) as server:
        attacker, victim = Browser(server.browse), Browser(server.browse)
        await attacker.begin()
        back = await victim.at_provider(await victim.begin())
        (name,) = victim.cookies
        (foreign,) = attacker.cookies.values()
        for value in (foreign, "", "x", "=" * 50, "A" * 5000, victim.cookies[name][:-2] + "AA", "\xff\xfe"):
            victim.cookies = {name: value}
            assert (await victim.get(back)).status == 400
        assert provider.asked.count("token") == 0


async def test_huge_and_many_cookies_are_no_matter(database: str, provider: Provider) -> None:
    """Whoever sends much would keep the server busy."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        back = await browser.at_provider(await browser.begin())
        own = browser.cookies
        browser.cookies = {f"c{number}": "x" * 100 for number in range(40)} | own
        assert (await browser.get(back)).status == 302
        browser.cookies = {"x": "y" * 200_000}
        assert (await browser.get(back)).status in (400, 431)


async def test_a_callback_is_good_once(database: str, provider: Provider) -> None:
    """Whoever finds the address in a history would log in with it."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        back = await browser.at_provider(await browser.begin())
        cookies = dict(browser.cookies)
        assert (await browser.get(back)).status == 302
        assert (await browser.get(back)).status == 400
        browser.cookies = cookies
        assert (await browser.get(back)).status == 502
        assert provider.refused == ["invalid_grant"]


async def test_a_copy_of_the_database_is_no_login(database: str) -> None:
    """Whoever finds a backup would log in as anybody; or workers would not understand each other."""
    async with running_core(database) as core:
        other = SigningKey(KEY.key_id, bytes(32))
        one, two, third = [await sealing_key(core.database, key) for key in (KEY, KEY, other)]
        assert one == two
        assert len({one, third, await core.database.fetchval("SELECT sso_key FROM server")}) == 3


async def test_a_login_ends_after_ten_minutes(database: str, provider: Provider) -> None:
    """A login left open in a library would be somebody's an hour later."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        back = await browser.at_provider(await browser.begin())
        server.clock.ms += 601_000
        assert (await browser.get(back)).status == 400


async def test_a_step_can_not_be_skipped(database: str, provider: Provider) -> None:
    """Who was only on the way to the provider could make an account without being anybody there."""
    async with sso_server(database, provider, mapping={"confirm_localpart": True}) as server:
        browser = Browser(server.browse)
        url = await browser.begin()
        state = parse_qs(urlsplit(url).query)["state"][0]
        assert (await browser.get(f"{PICK}?state={state}")).status == 400
        assert (await browser.send("POST", PICK, {"state": state, "username": "x"})).status == 400
        cookies = dict(browser.cookies)
        reply = await browser.get(await browser.at_provider(url))
        assert reply.status == 302
        stranger = Browser(server.browse)
        stranger.cookies = cookies
        assert (await stranger.send("POST", PICK, {"state": state, "username": "x"})).status == 400
        assert (await Browser(server.browse).send("POST", PICK, {"state": state})).status == 400
        assert await server.core.database.fetchval("SELECT count(*) FROM accounts") == 0


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


FAULTS = [slow, dripping, large, elsewhere, no_json, a_list, down]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["openid-configuration", "token"])
async def test_a_provider_that_fails_is_told_to_the_user(
    database: str, provider: Provider, caplog: pytest.LogCaptureFixture, fault: Answer, at: str
) -> None:
    """People would look at a blank page, and everybody else's logins would wait."""
    async with sso_server(database, provider) as server:
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
        assert (await Browser(server.browse).log_in()).status == 302


async def test_many_who_wait_for_a_slow_provider_leave_the_others_alone(
    database: str, provider: Provider
) -> None:
    """A provider that hangs would have the whole server hang."""
    async with sso_server(database, provider) as server:
        browsers = [Browser(server.browse) for _ in range(20)]
        backs = [await browser.at_provider(await browser.begin()) for browser in browsers]
        provider.answers["token"] = slow
        replies = await asyncio.gather(
            *(browser.get(back) for browser, back in zip(browsers, backs, strict=True))
        )
        assert sorted(reply.status for reply in replies) == [502] * 16 + [503] * 4
        assert (await server.get("/v3/login")).status == 200


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


@pytest.mark.parametrize(("error", "status"), [("access_denied", 403), ("server_error<b>", 502)])
async def test_who_is_refused_there_is_told_so(
    database: str, provider: Provider, error: str, status: int
) -> None:
    """Who changed their mind would see an error of the server, or what somebody wrote into a link."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        state = parse_qs(urlsplit(await browser.begin()).query)["state"][0]
        query = urlencode({"state": state, "error": error, "error_description": "<script>x</script>"})
        reply = await browser.get(f"/_synapse/client/oidc/callback?{query}")
        assert reply.status == status
        assert "<script>" not in reply.text
        assert "<b>" not in reply.text


HOSTILE_URLS = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "file:///etc/passwd",
    "blob:https://a.b/x",
    "//evil.example",
    "/relative",
    "",
    "https:evil.example",
    "https://",
    "https://trusted.example@evil.example/",
    "https://evil.example\\@trusted.example/",
    "https://a b/",
    "https://a.b/\r\nSet-Cookie: x=y",
    "https://a;b/",
    "https://a.b/" + "x" * 1500,
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_link_can_not_name_just_anything_as_the_client(
    database: str, provider: Provider, url: str
) -> None:
    """A link would run a script with the login in it, or look like a client that it is not."""
    async with sso_server(database, provider) as server:
        for way in ("", "/corp"):
            path = f"/_matrix/client/v3/login/sso/redirect{way}?redirectUrl={quote(url)}"
            reply = await Browser(server.browse).get(path)
            assert reply.status == 400
            assert "Set-Cookie" not in reply.headers
        assert (await Browser(server.browse).get("/_matrix/client/v3/login/sso/redirect")).status == 400


async def test_what_no_browser_sends_is_refused(database: str, provider: Provider) -> None:
    """A strange URL or form would fail inside the server."""
    paths = {
        "/_matrix/client/v3/login/sso/redirect": ("redirectUrl",),
        "/_matrix/client/v3/login/sso/redirect/corp": ("redirectUrl",),
        "/_synapse/client/oidc/callback": ("state", "code", "iss", "error"),
        PICK: ("state",),
        "/_matrix/client/v3/auth/m.login.sso/fallback/web": ("session",),
    }
    values = ["%00", "%FF", "x" * 20_000, "%F0%9F%98%80", "%ED%A0%80", "%0D%0AX:y", "", "..%2F", "[]"]
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        state = parse_qs(urlsplit(await browser.begin()).query)["state"][0]
        for path, names in paths.items():
            for value in values:
                for name in names:
                    good = "" if name == "state" else f"&state={state}"
                    reply = await browser.get(f"{path}?{name}={value}{good}")
                    assert reply.status in (400, 403, 404, 429, 502), (path, name, value)
            assert (await browser.get(f"{path}?" + "&".join(["a=b"] * 500))).status == 400
        for raw in ("state=%00", "state=%FF", "\xff", "", "&" * 300, f"state={state}&username=x"):
            reply = await server.browse("POST", PICK, {}, raw)
            assert reply.status == 400, raw


async def test_nothing_of_others_is_markup_on_a_page(database: str, provider: Provider) -> None:
    """A name or an address would be a script on the page where one gives away one's account."""
    mark = '"><script>alert(1)</script>{{ 7*7 }}'
    mapping = {"localpart_template": "", "display_name_template": "{{ user.name }}"}
    async with sso_server(database, provider, mapping=mapping) as server:
        provider.person["name"] = mark
        browser = Browser(server.browse)
        url_mark = mark.replace(" ", "")
        reply = await browser.log_in(f"https://evil.example/?{url_mark}#{url_mark}")
        state = parse_qs(urlsplit(reply.location).query)["state"][0]
        pages = [
            await browser.get(f"{PICK}?state={state}"),
            await browser.send("POST", PICK, {"state": state, "username": mark}),
            await browser.send("POST", PICK, {"state": state, "username": "alice"}),
            await browser.get(
                f"/_matrix/client/v3/login/sso/redirect/{quote(mark, safe='')}?redirectUrl=https://a.b/"
            ),
        ]
        assert [page.status for page in pages] == [200, 400, 200, 404]
        for page in pages:
            assert "<script>" not in page.text
            assert "49" not in plain(page)
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            assert page.headers["Cache-Control"] == "no-store"
            assert page.headers["X-Frame-Options"] == "DENY"
            assert page.headers["Referrer-Policy"] == "no-referrer"
            policy = page.headers["Content-Security-Policy"]
            assert policy.startswith(
                "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action "
            )
            assert "unsafe" not in policy
        assert login_token(pages[2])


async def test_a_template_of_the_configuration_reaches_nothing_but_the_claims(
    database: str, provider: Provider
) -> None:
    """A claim, or a template taken from the web, would run programs."""
    evil = "{{ user.__class__.__mro__[1].__subclasses__() }}"
    async with sso_server(database, provider, mapping={"display_name_template": evil}) as server:
        assert (await Browser(server.browse).log_in()).status == 502
    claim = "{{ 7*7 }}"
    provider.person |= {"preferred_username": claim, "name": claim}
    async with sso_server(database, provider) as server:
        await Browser(server.browse).log_in()
        assert await server.core.database.fetchval("SELECT user_id FROM accounts") == (
            "@=7b=7b=207=2a7=20=7d=7d:example.org"
        )


@pytest.mark.parametrize(
    ("url", "added"),
    [
        ("https://a.b/", "https://a.b/?loginToken=t"),
        ("https://a.b", "https://a.b/?loginToken=t"),
        ("https://a.b?x", "https://a.b/?x&loginToken=t"),
        ("https://a.b/?x=%2F&loginToken=old&y=#/f?g", "https://a.b/?x=%2F&y=&loginToken=t#/f?g"),
        ("https://a.b/?login%54oken=old", "https://a.b/?loginToken=t"),
        ("http://[::1]:80/ä", "http://[::1]:80/%C3%A4?loginToken=t"),
        ("element://vector/webapp/?id=1", "element://vector/webapp/?id=1&loginToken=t"),
        ("im.fluffychat:/login", "im.fluffychat:/login?loginToken=t"),
    ],
)
def test_the_token_is_added_to_the_clients_address(url: str, added: str) -> None:
    """A client would not find its token, or not what else it had in the address."""
    assert with_login_token(checked_url(url), "t") == added


def test_a_trusted_host_is_not_the_beginning_of_another() -> None:
    """Whoever registers a longer name would be trusted as the client of the company."""
    trusted = whitelisted(
        SsoConfig(client_whitelist=("https://app.b", "https://c.d/x", "x.y:")), "https://m.b/"
    )
    for url, expected in (
        ("https://app.b", True),
        ("https://app.b/x", True),
        ("https://app.b.evil.example/", False),
        ("https://app.bad", False),
        ("https://c.d/xy", True),
        ("https://m.b/_matrix", True),
        ("x.y:/z", True),
    ):
        assert any(checked_url(url).startswith(it) for it in trusted) is expected, url


def test_what_a_person_is_told_of_an_address() -> None:
    """The page would name something else than where the login goes."""
    assert origin_of("https://a.b:8/c?d") == "https://a.b:8"
    assert origin_of("element://vector/x") == "element:"
    with pytest.raises(MatrixError):
        checked_url("https://a.b:x/")
