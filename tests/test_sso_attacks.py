"""Logins that somebody else wishes for, and providers that do not do what they should."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from ranvier.config.sso import SsoConfig
from ranvier.processes.sso import sealing_key
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey
from ranvier.users.client_urls import checked_url, origin_of, with_login_token
from ranvier.users.sso import whitelisted
from tests.core import KEY, running_core
from tests.oidc_provider import Browser, Provider, login_token
from tests.sso_server import PICK, plain, sso_server


async def test_a_login_belongs_to_the_browser_that_began_it(database: str, provider: Provider) -> None:
    """Who follows an attacker's link would be logged in to the attacker's account, and tell it everything."""
    async with sso_server(database, provider) as server:
        attacker, victim = Browser(server.browse), Browser(server.browse)
        back = await attacker.at_provider(await attacker.begin())
        await victim.begin()
        own = dict(victim.cookies)
        query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        state = next(iter(own)).removeprefix("__Host-ranvier_sso_")
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


async def test_a_cookie_that_another_host_can_set_is_none(database: str, provider: Provider) -> None:
    """Whoever has a page on a host beside would have one finish a login, or a confirmation, of theirs."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        back = await browser.at_provider(await browser.begin())
        browser.cookies = {name.removeprefix("__Host-"): value for name, value in browser.cookies.items()} | {
            name.lower(): value for name, value in browser.cookies.items()
        }
        assert (await browser.get(back)).status == 400


async def test_a_page_that_begins_many_logins_leaves_room_for_ones_own(
    database: str, provider: Provider
) -> None:
    """The web server would refuse all those cookies, and one could not log in for ten minutes."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        for number in range(30):
            await browser.begin(f"https://x.example/{number}/".ljust(1000, "a"))
        assert sum(len(f"{name}={value}; ") for name, value in browser.cookies.items()) < 8000
        assert (await browser.log_in()).status == 302


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
    "https://app.example.com/x/../y",
    "https://app.example.com/x/%2E%2e/y",
    "https://app.example.com/.%2e",
    "https://app.example.com/x/./y",
    "https://app.example.com/x/..?a#b",
    "http://[",
    "https://[x",
    "element://[",
    "element://[foo]/x",
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
            for path in (PICK, "/_synapse/client/give_access"):
                reply = await server.browse("POST", path, {}, raw)
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
        assert login_token(await browser.agree(pages[2]))


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
    trusted = whitelisted(SsoConfig(client_whitelist=("https://app.b", "https://c.d/x", "x.y:")))
    for url, expected in (
        ("https://app.b", True),
        ("https://app.b/x", True),
        ("https://app.b.evil.example/", False),
        ("https://app.bad", False),
        ("https://c.d/xy", True),
        ("https://app.b/x?a/../b", True),
        ("x.y:/z", True),
    ):
        assert any(checked_url(url).startswith(it) for it in trusted) is expected, url


def test_what_a_person_is_told_of_an_address() -> None:
    """The page would name something else than where the login goes."""
    assert origin_of("https://a.b:8/c?d") == "https://a.b:8"
    assert origin_of("element://vector/x") == "element:"
    with pytest.raises(MatrixError):
        checked_url("https://a.b:x/")
