"""Logging in at a provider, with a real one on the loopback."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ranvier.http.limits import Rate
from tests.account_server import OPEN, PASSWORD, AccountServer, account_server
from tests.oidc_provider import ALICE, BASE, CLIENT, Browser, Provider, login_token, running_provider
from tests.sso_server import PICK, TRUSTED, plain, session_of, settings, sso_server


async def display_name(server: AccountServer, user_id: str) -> str | None:
    """Give the name in a profile."""
    document = await server.core.database.fetchval(
        "SELECT document FROM profiles WHERE user_id = $1", user_id
    )
    name: str | None = json.loads(document).get("displayname") if document else None
    return name


async def test_the_offered_ways_name_the_providers(database: str, provider: Provider) -> None:
    """A client would have no button for the login that the company uses."""
    icon = {"idp_icon": "mxc://example.org/abc", "idp_brand": "keycloak"}
    async with sso_server(database, provider, **icon) as server:
        flows = (await server.get("/v3/login")).body["flows"]
        assert [flow["type"] for flow in flows] == ["m.login.password", "m.login.sso", "m.login.token"]
        assert flows[1]["identity_providers"] == [
            {"id": "corp", "name": "Corp <Ltd>", "icon": "mxc://example.org/abc", "brand": "keycloak"}
        ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"client_auth_method": "client_secret_post", "pkce_method": "never"},
        {"user_profile_method": "userinfo_endpoint", "pkce_method": "always"},
        {"scopes": ["read:user"], "mapping": {"subject_claim": "id"}},
    ],
)
async def test_who_comes_first_gets_an_account_and_keeps_it(
    database: str, provider: Provider, changes: Any
) -> None:
    """People of the company could not get in, or would be somebody new with every login."""
    provider.person["id"] = 17
    async with sso_server(database, provider, **changes) as server:
        browser = Browser(server.browse)
        reply = await browser.log_in()
        assert reply.status == 302
        assert reply.location.startswith("https://app.example.com/?loginToken=")
        assert reply.location.endswith("#/login?x=1")
        assert browser.cookies == {}
        session = await session_of(server, reply)
        assert session["user_id"] == "@alice:example.org"
        assert await display_name(server, "@alice:example.org") == "Alice Ä."
        provider.person["preferred_username"] = "alice.smith"
        again = await session_of(server, await Browser(server.browse).log_in())
        assert again["user_id"] == "@alice:example.org"
        assert again["device_id"] != session["device_id"]
        assert provider.refused == []


async def test_a_client_without_a_secret_and_endpoints_of_the_configuration(
    database: str, provider: Provider
) -> None:
    """A provider that knows no discovery, or gives no secrets, could not be used."""
    provider.public_client = True
    changes = {
        "client_auth_method": "none",
        "client_secret": None,
        "discover": False,
        "pkce_method": "always",
        "authorization_endpoint": f"{provider.url}/authorize?realm=a",
        "token_endpoint": f"{provider.url}/token",
    }
    async with sso_server(database, provider, **changes) as server:
        await session_of(server, await Browser(server.browse).log_in())
        assert provider.asked == ["authorize", "token"]


async def test_the_discovery_document_is_fetched_once_an_hour(database: str, provider: Provider) -> None:
    """Each login would take a question more, or a provider's new address would never be seen."""
    async with sso_server(database, provider) as server:
        for _ in range(2):
            await Browser(server.browse).begin()
        assert provider.asked == ["openid-configuration"]
        server.clock.ms += 3601 * 1000
        await Browser(server.browse).begin()
        assert provider.asked == ["openid-configuration"] * 2


async def test_of_several_providers_one_is_chosen(database: str, provider: Provider) -> None:
    """Who uses an older client would be sent to the wrong provider."""
    async with running_provider() as other:
        text = settings(provider.settings(), other.settings(idp_id="club", idp_name="Club"))
        async with account_server(database, text) as server:
            browser = Browser(server.browse)
            page = await browser.get("/_matrix/client/r0/login/sso/redirect?redirectUrl=https://a.b/?c%26d")
            assert page.status == 200
            assert "Corp &lt;Ltd&gt;" in page.text
            links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', page.text)]
            assert [link.partition("?")[0] for link in links] == ["redirect/corp", "redirect/club"]
            assert parse_qs(urlsplit(links[1]).query)["redirectUrl"] == ["https://a.b/?c&d"]
            reply = await browser.get(f"/_matrix/client/r0/login/sso/{links[1]}")
            assert reply.location.startswith(other.url)
            assert (await browser.begin(way="/oidc-corp")).startswith(provider.url)
            unknown = await browser.get("/_matrix/client/v3/login/sso/redirect/x?redirectUrl=https://a.b/")
            assert unknown.status == 404
            assert "no such way" in plain(unknown)


async def test_an_unknown_client_gets_nothing_before_the_user_says_so(
    database: str, provider: Provider
) -> None:
    """A link in a mail would hand one's account to whoever wrote it."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        reply = await browser.log_in("https://app.example.com.evil.example/?a=1&loginToken=x#f")
        assert reply.status == 200
        assert "loginToken" not in reply.text
        assert await server.core.database.fetchval("SELECT count(*) FROM short_lived_tokens") == 0
        policy = reply.headers["Content-Security-Policy"]
        assert "form-action 'self' https://app.example.com.evil.example;" in policy
        words = plain(reply)
        assert "https://app.example.com.evil.example" in words
        assert "@alice:example.org" in words
        assert 'action="../give_access"' in reply.text
        # Nor by anybody else, or by something else that one began.
        assert (await Browser(server.browse).agree(reply)).status == 400
        state = parse_qs(urlsplit(await browser.begin()).query)["state"][0]
        assert (await browser.send("POST", "/_synapse/client/give_access", {"state": state})).status == 400
        server.clock.ms += 90 * 1000
        given = await browser.agree(reply)
        assert re.fullmatch(
            r"https://app\.example\.com\.evil\.example/\?a=1&loginToken=rvl_\w+#f", given.location
        )
        assert (await session_of(server, given))["user_id"] == "@alice:example.org"
        # By a second click, too, while the app is slow to come; and then no more.
        again = await browser.agree(reply)
        assert (await session_of(server, again))["user_id"] == "@alice:example.org"
        server.clock.ms += 31 * 1000
        assert (await browser.agree(reply)).status == 400


@pytest.mark.parametrize(("ms", "status"), [(9_000, 200), (11_000, 403)])
async def test_what_a_client_is_given_ends_soon(
    database: str, provider: Provider, ms: int, status: int
) -> None:
    """Whoever reads the log of the client's web server would log in with what stands there."""
    async with sso_server(database, provider) as server:
        token = login_token(await Browser(server.browse).log_in())
        server.clock.ms += ms
        answer = await server.post("/v3/login", {"type": "m.login.token", "token": token})
        assert answer.status == status


async def test_the_address_of_the_server_is_trusted_like_any_other(database: str, provider: Provider) -> None:
    """Whoever has a page on the same host would get everybody's account by a link."""
    async with sso_server(database, provider, sso={}) as server:
        reply = await Browser(server.browse).log_in(f"{BASE}~somebody/")
        assert reply.status == 200
        assert BASE.rstrip("/") in plain(reply)
    async with sso_server(database, provider, sso={"client_whitelist": [BASE]}) as server:
        assert (await Browser(server.browse).log_in(f"{BASE}element/")).status == 302


async def test_several_logins_in_one_browser(database: str, provider: Provider) -> None:
    """Who opens a second tab would lose the login in the first."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        urls = [await browser.begin() for _ in range(4)]
        assert len(browser.cookies) == 4
        replies = [await browser.get(await browser.at_provider(url)) for url in urls]
        assert len({login_token(reply) for reply in replies}) == 4
        assert browser.cookies == {}


@pytest.mark.parametrize("base", [BASE, "http://localhost:8008/matrix/"])
async def test_the_cookie_goes_nowhere_else(database: str, provider: Provider, base: str) -> None:
    """What a login is begun with would be told to scripts, to other sites and on lines that anybody reads."""
    async with account_server(database, settings(provider.settings(), public_baseurl=base)) as server:
        reply = await Browser(server.browse).get(
            "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://a.b/"
        )
        attributes = [part.strip() for part in reply.headers["Set-Cookie"].split(";")[1:]]
        name = reply.headers["Set-Cookie"].partition("=")[0]
        if base == BASE:
            # Browsers take it from no other host, by which it is at most one of this server.
            assert re.fullmatch("__Host-ranvier_sso_[0-3]", name)
            where = ["Path=/", "Secure"]
        else:
            assert re.fullmatch("ranvier_sso_[0-3]", name)
            where = ["Path=/matrix/"]
        assert attributes == ["Max-Age=600", *where, "HttpOnly", "SameSite=Lax"]


async def test_an_existing_account_is_theirs_where_the_configuration_says_so(
    database: str, provider: Provider
) -> None:
    """A server that gets single sign-on would have everybody begin with a second account."""
    async with sso_server(database, provider, allow_existing_users=True) as server:
        await server.register("alice")
        assert (await session_of(server, await Browser(server.browse).log_in()))["user_id"] == (
            "@alice:example.org"
        )
        assert (await server.login("alice")).status == 200
        # Who has the same name there later is somebody else.
        provider.person["sub"] = "another"
        reply = await Browser(server.browse).log_in()
        assert reply.location.startswith("../pick_username/account_details?state=")


@pytest.mark.parametrize("name", ["admin", "Admin", "ADMIN"])
async def test_nobody_gets_an_account_that_is_there_by_its_name(
    database: str, provider: Provider, name: str
) -> None:
    """Whoever calls themselves admin at the provider would be the administrator here."""
    async with sso_server(database, provider) as server:
        await server.register("admin")
        provider.person["preferred_username"] = name
        browser = Browser(server.browse)
        reply = await browser.log_in()
        state = parse_qs(urlsplit(reply.location).query)["state"][0]
        page = await browser.get(f"{PICK}?state={state}")
        assert page.status == 200
        assert "taken already" in plain(page)
        again = await browser.send("POST", PICK, {"state": state, "username": "@admin:example.org"})
        assert again.status == 400
        again = await browser.send("POST", PICK, {"state": state, "username": "Admin"})
        assert again.status == 400
        assert "taken already" in plain(again)
        done = await browser.send("POST", PICK, {"state": state, "username": "admin2"})
        assert (await session_of(server, done))["user_id"] == "@admin2:example.org"


@pytest.mark.parametrize(
    ("claim", "mapping", "name"),
    [
        ("Zoë O'Hara", {}, "zo=c3=ab=20o=27hara"),
        ("_x", {}, None),
        ("1234", {}, None),
        ("", {}, None),
        ("z" * 300, {}, None),
        (None, {}, None),
        (
            "a.b@c.example",
            {"localpart_template": "{{ user.preferred_username|localpart_from_email }}"},
            "a.b",
        ),
        ("alice", {"confirm_localpart": True}, "alice"),
    ],
)
async def test_names_are_made_of_claims_or_asked_for(
    database: str, provider: Provider, claim: Any, mapping: Any, name: str | None
) -> None:
    """People with an umlaut in their name could not log in, or none could say what to be called."""
    async with sso_server(database, provider, mapping=mapping) as server:
        provider.person["preferred_username"] = claim
        browser = Browser(server.browse)
        reply = await browser.log_in()
        if name is None or mapping.get("confirm_localpart"):
            state = parse_qs(urlsplit(reply.location).query)["state"][0]
            page = await browser.get(f"{PICK}?state={state}")
            assert f'value="{name or ""}"' in page.text
            for wrong in ("", "_x", "12", "a b", "<b>", "x" * 300):
                refused = await browser.send("POST", PICK, {"state": state, "username": wrong})
                assert refused.status == 400
                assert "<b>" not in refused.text
            name = "chosen"
            reply = await browser.send("POST", PICK, {"state": state, "username": "Chosen"})
        assert (await session_of(server, reply))["user_id"] == f"@{name}:example.org"
        assert browser.cookies == {}


async def test_the_form_leads_only_to_the_client(database: str, provider: Provider) -> None:
    """Browsers would stop at the end of the form, or let it be sent anywhere."""
    async with sso_server(database, provider, mapping={"confirm_localpart": True}) as server:
        for client, target in (("element://vector/x", "element:"), (CLIENT, "https://app.example.com")):
            browser = Browser(server.browse)
            reply = await browser.log_in(client)
            page = await browser.get(PICK + reply.location.partition("account_details")[2])
            policy = page.headers["Content-Security-Policy"]
            assert f"form-action 'self' {target};" in policy


async def test_without_registration_strangers_are_told_that_they_have_no_account(
    database: str, provider: Provider
) -> None:
    """Everybody of the company would get an account although the administrator makes them by hand."""
    changes = {"enable_registration": False, "allow_existing_users": True}
    async with sso_server(database, provider, **changes) as server:
        reply = await Browser(server.browse).log_in()
        assert reply.status == 403
        assert "no account" in plain(reply)
        await server.register("alice")
        assert (await Browser(server.browse).log_in()).status == 302


async def test_who_may_log_in_can_be_limited_by_claims(
    database: str, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """People who are in no group that may use the server would get in, or nobody knew why they did not."""
    rules = [
        {"attribute": "groups", "value": "matrix"},
        {"attribute": "office", "one_of": ["a", "b"]},
        {"attribute": "name"},
    ]
    async with sso_server(database, provider, attribute_requirements=rules) as server:
        for claims, status in (
            ({}, 403),
            ({"groups": ["other"], "office": "a"}, 403),
            ({"groups": ["x", "matrix"], "office": "c"}, 403),
            ({"groups": "matrix", "office": "b", "name": None}, 403),
            ({"groups": ["x", "matrix"], "office": "b"}, 302),
        ):
            provider.id_token = claims
            caplog.clear()
            with caplog.at_level(logging.INFO, "ranvier"):
                assert (await Browser(server.browse).log_in()).status == status, claims
            told = "A login was refused, corp: attribute_requirements, because of the claim "
            assert (told in caplog.text) is (status == 403)
            assert "other" not in caplog.text


@pytest.mark.parametrize(
    ("claim", "value", "status"),
    [(True, "true", 302), (False, "true", 403), (17, "17", 302), ([1, 17], "17", 302), ({"a": 1}, "a", 403)],
)
async def test_claims_that_are_no_texts_can_be_required(
    database: str, provider: Provider, claim: Any, value: str, status: int
) -> None:
    """All people with a verified address would be kept out: the provider writes true without quotes."""
    rules = [{"attribute": "email_verified", "value": value}]
    async with sso_server(database, provider, attribute_requirements=rules) as server:
        provider.id_token = {"email_verified": claim}
        assert (await Browser(server.browse).log_in()).status == status


@pytest.mark.parametrize("change", ["deactivated", "locked"])
async def test_accounts_out_of_use_stay_so(database: str, provider: Provider, change: str) -> None:
    """Somebody whose account was ended would be back with the next click."""
    async with sso_server(database, provider) as server:
        await session_of(server, await Browser(server.browse).log_in())
        await server.parts.accounts.change("@alice:example.org", **{change: True})
        reply = await Browser(server.browse).log_in()
        assert reply.status == 403
        assert change in plain(reply)


async def test_names_follow_the_provider_where_the_configuration_says_so(
    database: str, provider: Provider
) -> None:
    """Who marries would have the old name for ever, or a name that one chose here would be overwritten."""
    for sso, after in (({}, "Alice Ä."), ({"update_profile_information": True}, "Alice B.")):
        provider.person["name"] = "Alice Ä."
        async with sso_server(database, provider, sso={**TRUSTED, **sso}) as server:
            await session_of(server, await Browser(server.browse).log_in())
            provider.person["name"] = "Alice B."
            await session_of(server, await Browser(server.browse).log_in())
            assert await display_name(server, "@alice:example.org") == after


async def test_logins_and_new_accounts_count_as_others_do(database: str, provider: Provider) -> None:
    """Single sign-on would be a way round the limits."""
    limited = ("rc_registration", "rc_login.address", "rc_login.account", "rc_login.failed_attempts")
    rates = dict.fromkeys(limited, Rate(0.01, 1))
    async with sso_server(database, provider, rates=rates) as server:
        await session_of(server, await Browser(server.browse).log_in())
        provider.person = {"sub": "bob", "preferred_username": "bob"}
        reply = await Browser(server.browse).log_in()
        assert reply.status == 429
        assert int(reply.headers["Retry-After"]) > 0
        provider.person = dict(ALICE)
        reply = await Browser(server.browse).log_in()
        answer = await server.post("/v3/login", {"type": "m.login.token", "token": login_token(reply)})
        assert answer.status == 429
        provider.id_token = {"nonce": "another"}
        assert (await Browser(server.browse).log_in()).status == 502
        assert (await Browser(server.browse).log_in()).status == 429


async def test_two_workers_make_one_account_for_one_person(database: str, provider: Provider) -> None:
    """Who clicks twice would have two accounts, or an error."""
    text = settings(provider.settings())
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(account_server(database, text)) for _ in range(3)]
        provider.now_s = lambda: servers[0].clock.now_ms() / 1000
        for number in range(5):
            provider.person = {"sub": f"s{number}", "preferred_username": f"user{number}"}
            browsers = [Browser(server.browse) for server in servers]
            backs = [await browser.at_provider(await browser.begin()) for browser in browsers]
            replies = await asyncio.gather(
                *(browser.get(back) for browser, back in zip(browsers, backs, strict=True))
            )
            sessions = [await session_of(servers[0], reply) for reply in replies]
            assert {session["user_id"] for session in sessions} == {f"@user{number}:example.org"}
        count = "SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM identities)"
        assert tuple(await servers[0].core.database.fetchrow(count) or ()) == (5, 5)


async def test_two_names_chosen_at_once_make_one_account(database: str, provider: Provider) -> None:
    """Who chooses a name in each of two tabs would have two accounts, and lose one of them."""
    async with sso_server(database, provider, mapping={"confirm_localpart": True}) as server:
        browsers = [Browser(server.browse) for _ in range(4)]
        forms = []
        for number, browser in enumerate(browsers):
            reply = await browser.log_in()
            state = parse_qs(urlsplit(reply.location).query)["state"][0]
            forms.append({"state": state, "username": f"alice{number}"})
        replies = await asyncio.gather(
            *(browser.send("POST", PICK, form) for browser, form in zip(browsers, forms, strict=True))
        )
        users = {(await session_of(server, reply))["user_id"] for reply in replies}
        assert len(users) == 1
        assert await server.core.database.fetchval("SELECT count(*) FROM accounts") == 1


async def test_an_account_without_a_password_has_none_to_guess(database: str, provider: Provider) -> None:
    """An account of single sign-on could be entered with some password."""
    async with sso_server(database, provider) as server:
        await session_of(server, await Browser(server.browse).log_in())
        for password in ("", PASSWORD, "None"):
            assert (await server.login("alice", password)).status == 403


async def test_without_a_provider_there_is_nothing(database: str) -> None:
    """A server without single sign-on would show pages that lead nowhere."""
    async with account_server(database, OPEN) as server:
        assert "m.login.sso" not in str((await server.get("/v3/login")).body)
        for path in (
            "/v3/login/sso/redirect",
            "/v3/auth/m.login.sso/fallback/web",
            "/_synapse/client/oidc/callback",
            PICK,
        ):
            answer = await server.get(path, redirectUrl="https://a.b/", session="x")
            assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")
