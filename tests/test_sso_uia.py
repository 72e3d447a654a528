"""Confirming something at the provider by which one logs in (``m.login.sso`` as a stage)."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.account_server import PASSWORD, AccountServer
from tests.oidc_provider import Browser, Provider
from tests.sso_server import plain, session_of, sso_server

DEACTIVATE = "/v3/account/deactivate"
# Word for word that of the specification ("Fallback").
SCRIPT = """\
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}"""


async def begin(server: AccountServer, token: str) -> tuple[str, list[Any]]:
    """Ask to end the account, and give the session and the flows."""
    asked = await server.post(DEACTIVATE, {}, token)
    assert asked.status == 401, asked
    return asked.body["session"], [flow["stages"] for flow in asked.body["flows"]]


async def fallback(browser: Browser, session: str, version: str = "v3") -> tuple[str, str]:
    """Open the page of a session, and give its words and where its link leads."""
    page = await browser.get(f"/_matrix/client/{version}/auth/m.login.sso/fallback/web?session={session}")
    assert page.status == 200, page
    (link,) = re.findall(r'href="([^"]+)"', page.text)
    return plain(page), html.unescape(link)


@pytest.mark.parametrize("version", ["v3", "r0"])
async def test_who_has_no_password_confirms_at_the_provider(
    database: str, provider: Provider, version: str
) -> None:
    """People of the company could neither remove a device nor set up encryption."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        token = (await session_of(server, await browser.log_in()))["access_token"]
        session, flows = await begin(server, token)
        assert flows == [["m.login.sso"]]
        words, link = await fallback(browser, session, version)
        assert "deactivate the account" in words
        assert "@alice:example.org" in words
        done = await browser.get(await browser.at_provider(link))
        assert done.status == 200
        assert SCRIPT in done.text
        script = done.text.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in done.headers["Content-Security-Policy"]
        assert browser.cookies == {}
        assert (await server.post(DEACTIVATE, {"auth": {"session": session}}, token)).status == 200


async def test_a_password_is_good_as_well(database: str, provider: Provider) -> None:
    """Who has both would have to use the one that is not at hand."""
    async with sso_server(database, provider, allow_existing_users=True) as server:
        token = (await server.register("alice"))["access_token"]
        assert (await begin(server, token))[1] == [["m.login.password"]]
        await session_of(server, await Browser(server.browse).log_in())
        session, flows = await begin(server, token)
        assert flows == [["m.login.password"], ["m.login.sso"]]
        auth = {"type": "m.login.password", "password": PASSWORD, "session": session}
        assert (await server.post(DEACTIVATE, {"auth": auth}, token)).status == 200


async def test_nothing_is_confirmed_without_the_provider(database: str, provider: Provider) -> None:
    """Whoever has a stolen access token would say that they had been at the provider, and be believed."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        token = (await session_of(server, await browser.log_in()))["access_token"]
        session, _ = await begin(server, token)
        for auth in ({"type": "m.login.sso"}, {}):
            answer = await server.post(DEACTIVATE, {"auth": {**auth, "session": session}}, token)
            assert answer.status == 401
            assert answer.body["completed"] == []
        assert (await server.post(DEACTIVATE, {"auth": {"type": "m.login.sso"}}, token)).status == 401
        await fallback(browser, session)
        assert (await server.post(DEACTIVATE, {"auth": {"session": session}}, token)).status == 401


async def test_somebody_elses_proof_is_none(database: str, provider: Provider) -> None:
    """Whoever gets hold of an open client could end the account with a login of their own."""
    async with sso_server(database, provider) as server:
        browser, mallory = Browser(server.browse), Browser(server.browse)
        token = (await session_of(server, await browser.log_in()))["access_token"]
        session, _ = await begin(server, token)
        _, link = await fallback(mallory, session)
        for person in ({"sub": "mallory", "preferred_username": "mallory"}, {"sub": "nobody"}):
            provider.person = person
            if person["sub"] == "mallory":
                await session_of(server, await Browser(server.browse).log_in())
            _, link = await fallback(mallory, session)
            reply = await mallory.get(await mallory.at_provider(link))
            assert reply.status == 403
            assert "somebody else" in plain(reply)
        assert (await server.post(DEACTIVATE, {"auth": {"session": session}}, token)).status == 401


async def test_a_proof_belongs_to_the_browser_that_saw_the_question(
    database: str, provider: Provider
) -> None:
    """An attacker would have their victim confirm by a link what the victim never read."""
    async with sso_server(database, provider) as server:
        victim, attacker = Browser(server.browse), Browser(server.browse)
        token = (await session_of(server, await victim.log_in()))["access_token"]
        session, _ = await begin(server, token)
        _, link = await fallback(attacker, session)
        assert (await victim.get(await victim.at_provider(link))).status == 400
        # Nor is a login good for it, or the other way round.
        login = await victim.at_provider(await victim.begin())
        assert (await victim.get(login)).status == 302
        assert (await server.post(DEACTIVATE, {"auth": {"session": session}}, token)).status == 401


@pytest.mark.parametrize("auth_time", [0, None, "now", True, -121, -119, ...])
async def test_one_logs_in_anew_to_confirm(database: str, provider: Provider, auth_time: Any) -> None:
    """Whoever sits down at somebody's open computer could end the account, and enter nothing for it."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        login = parse_qs(urlsplit(await browser.begin()).query)
        assert "prompt" not in login
        assert "max_age" not in login
        provider.id_token = {"auth_time": 0}
        token = (await session_of(server, await browser.log_in()))["access_token"]
        session, _ = await begin(server, token)
        _, link = await fallback(browser, session)
        asked = parse_qs(urlsplit(link).query)
        assert (asked["prompt"], asked["max_age"]) == (["login"], ["0"])
        is_offset = type(auth_time) is int and auth_time != 0
        at = server.clock.now_ms() // 1000 + auth_time if is_offset else auth_time
        provider.id_token = {} if at is ... else {"auth_time": at}
        server.clock.ms += 300 * 1000
        works = auth_time in (-119, ...)
        assert (await browser.get(await browser.at_provider(link))).status == (200 if works else 502)
        answer = await server.post(DEACTIVATE, {"auth": {"session": session}}, token)
        assert answer.status == (200 if works else 401)


async def test_what_is_over_has_a_page_that_says_so(database: str, provider: Provider) -> None:
    """Somebody who comes late would see a blank page, or confirm something else."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        token = (await session_of(server, await browser.log_in()))["access_token"]
        page = "/_matrix/client/v3/auth/{}/fallback/web?session={}"
        for wrong in ("none", "x" * 5000, quote("ä<b>"), ""):
            reply = await browser.get(page.format("m.login.sso", wrong))
            assert reply.status == 404
            assert "is over" in plain(reply)
        session, _ = await begin(server, token)
        for stage in ("m.login.password", "m.login.recaptcha", "x"):
            assert (await browser.get(page.format(stage, session))).status == 404
        assert (await browser.get("/_matrix/client/v3/auth/m.login.sso/fallback/web")).status == 400
        await fallback(browser, session)
        server.clock.ms += 15 * 60 * 1000 + 1
        assert (await browser.get(page.format("m.login.sso", session))).status == 404
        # Of somebody who does not log in by a provider, and of nobody yet.
        other = (await server.register("bob"))["access_token"]
        session, _ = await begin(server, other)
        assert (await browser.get(page.format("m.login.sso", session))).status == 404
        asked = await server.post("/v3/register", {"username": "carol", "password": PASSWORD})
        assert (await browser.get(page.format("m.login.sso", asked.body["session"]))).status == 404


async def test_a_question_that_ends_at_the_provider_is_not_confirmed(
    database: str, provider: Provider
) -> None:
    """A confirmation would be good for something that one asks later."""
    async with sso_server(database, provider) as server:
        browser = Browser(server.browse)
        token = (await session_of(server, await browser.log_in()))["access_token"]
        session, _ = await begin(server, token)
        server.clock.ms += 14 * 60 * 1000
        _, link = await fallback(browser, session)
        back = await browser.at_provider(link)
        server.clock.ms += 2 * 60 * 1000
        reply = await browser.get(back)
        assert reply.status == 404
        assert "is over" in plain(reply)
