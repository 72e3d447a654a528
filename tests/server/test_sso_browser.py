"""Single sign-on in a real browser: its cookies, its security policies and its scripts."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from aiohttp import web

from tests.oidc_provider import running_provider
from tests.postgres import private_folder
from tests.server.browser import browser_page, find_chromium
from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess

_TELL = "window.onAuthDone = () => { window.told = true; }"


async def the_app(request: web.Request) -> web.StreamResponse:
    """Show the page of a client."""
    return web.Response(text="<title>the app</title>", content_type="text/html")


async def logged_in(client: HttpClient, address: str) -> None:
    """Log a client in with the token of the address at which its page was opened."""
    token = parse_qs(urlsplit(address).query)["loginToken"][0]
    answer = await client.post("/v3/login", {"type": "m.login.token", "token": token})
    client.token, client.user_id = answer["access_token"], answer["user_id"]
    client.device_id = answer["device_id"]


@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed here")
async def test_a_person_logs_in_and_confirms_something() -> None:
    """Browsers would not bring the cookie back, stop at the form, or not tell the client."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(running_provider())
        provider.answers["app"] = provider.answers["favicon.ico"] = the_app
        app = f"{provider.url}/app"
        folder = stack.enter_context(private_folder())
        server = ServerProcess(folder)
        stack.push_async_callback(server.stop)
        server.write_config(
            public_baseurl=f"{server.url}/",
            oidc_providers=[provider.settings(mapping={"confirm_localpart": True})],
            sso={"client_whitelist": [app]},
        )
        await server.start()
        page = await stack.enter_async_context(browser_page(folder))
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=_TELL)

        async def come_to(address: str) -> Any:
            there = f"document.title === 'the app' && location.href.startsWith('{address}')"
            return await page.until(f"{there} && location.href")

        begin = f"{server.url}/_matrix/client/v3/login/sso/redirect?redirectUrl="
        await page.open(begin + quote(f"{app}?n=1#x", safe=""))
        assert await page.until("document.querySelector('input[name=username]')?.value") == "alice"
        await page.click("button")
        alice, other = HttpClient(server.url), HttpClient(server.url)
        stack.push_async_callback(alice.close)
        stack.push_async_callback(other.close)
        await logged_in(alice, await come_to(app))
        assert alice.user_id == f"@alice:{server.server_name}"

        # Another app, of which the server knows nothing: it is named first.
        elsewhere = app.replace("127.0.0.1", "localhost")
        await page.open(begin + quote(elsewhere, safe=""))
        await page.until("document.querySelector('button')?.textContent === 'Continue'")
        assert "http://localhost" in await page.run("document.body.innerText")
        await page.click("button")
        await logged_in(other, await come_to(elsewhere))
        assert other.user_id == alice.user_id

        with pytest.raises(Refused) as asked:
            await alice.request("DELETE", f"/v3/devices/{other.device_id}", {})
        session = asked.value.body["session"]
        await page.open(f"{server.url}/_matrix/client/v3/auth/m.login.sso/fallback/web?session={session}")
        await page.until("document.querySelector('a.go')?.href")
        await page.click("a.go")
        await page.until("window.told")
        await alice.request("DELETE", f"/v3/devices/{other.device_id}", {"auth": {"session": session}})
        assert page.complaints == []
