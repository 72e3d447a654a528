"""Single sign-on by a server of several workers: each request of a login reaches another, and workers die."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.cluster.cluster_process import ClusterProcess, HoppingClient
from tests.oidc_provider import BASE, Browser, Provider, Reply, login_token, running_provider
from tests.postgres import private_folder
from tests.server.http_client import Refused
from tests.server.process import SERVER_NAME

Hopper = Callable[..., HoppingClient]


@asynccontextmanager
async def sso_cluster(**changes: Any) -> AsyncIterator[tuple[ClusterProcess, Provider, Hopper]]:
    """Run a server of three workers with a provider, and give what makes clients of some of its workers."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(running_provider())
        settings = {
            "public_baseurl": BASE,
            "oidc_providers": [provider.settings(**changes)],
            "sso": {"client_whitelist": ["https://app.example.com/"]},
        }
        server = ClusterProcess(stack.enter_context(private_folder()), 3, settings)
        stack.push_async_callback(server.stop)
        await server.start()

        def make(*names: str, seed: int = 0) -> HoppingClient:
            sockets = [server.worker_socket(name) for name in names or ("worker1", "worker2", "worker3")]
            client = HoppingClient(sockets, seed=seed)
            stack.push_async_callback(client.close)
            return client

        yield server, provider, make


async def log_in(client: HoppingClient, reply: Reply) -> str:
    """Log a client in with the token that it was given."""
    answer = await client.post("/v3/login", {"type": "m.login.token", "token": login_token(reply)})
    client.token, client.user_id, client.device_id = (
        answer["access_token"],
        answer["user_id"],
        answer["device_id"],
    )
    return client.user_id


async def test_every_request_of_a_login_may_reach_another_worker() -> None:
    """All logins would have to go to one process, and nobody could log in while that is away."""
    async with sso_cluster(mapping={"confirm_localpart": True}) as (_, provider, make):
        for number in range(6):
            provider.person = {"sub": f"s{number}", "preferred_username": f"user{number}"}
            client = make(seed=number)
            browser = Browser(client.browse)
            chosen = await browser.log_in()
            path = chosen.location.removeprefix("..")
            page = await browser.get(f"/_synapse/client{path}")
            assert f'value="user{number}"' in page.text
            form = {"state": path.partition("state=")[2], "username": f"user{number}"}
            reply = await browser.send("POST", f"/_synapse/client{path.partition('?')[0]}", form)
            assert await log_in(client, reply) == f"@user{number}:{SERVER_NAME}"
            again = make(seed=100 + number)
            assert await log_in(again, await Browser(again.browse).log_in()) == client.user_id
            await confirm(client, browser, again.device_id)
            with pytest.raises(Refused):
                await again.get("/v3/account/whoami")
            provider.refused.clear()


async def confirm(client: HoppingClient, browser: Browser, device_id: str) -> None:
    """Remove a device, which is confirmed at the provider: each step at some worker."""
    path = f"/v3/devices/{device_id}"
    with pytest.raises(Refused) as asked:
        await client.request("DELETE", path, {})
    assert asked.value.body["flows"] == [{"stages": ["m.login.sso"]}]
    session = asked.value.body["session"]
    page = await browser.get(f"/_matrix/client/v3/auth/m.login.sso/fallback/web?session={session}")
    assert "remove a device" in page.text
    (link,) = re.findall(r'href="([^"]+)"', page.text)
    done = await browser.get(await browser.at_provider(html.unescape(link)))
    assert "authDone" in done.text
    await client.request("DELETE", path, {"auth": {"session": session}})


async def test_a_worker_dies_while_its_user_is_at_the_provider() -> None:
    """Whoever types their password while a worker is restarted would have to begin anew."""
    async with sso_cluster() as (server, _, make):
        first, other = make("worker1"), make("worker2", "worker3")
        browser = Browser(first.browse)
        back = await browser.at_provider(await browser.begin())
        await server.kill_worker("worker1")
        after = Browser(other.browse)
        after.cookies = browser.cookies
        assert await log_in(other, await after.get(back)) == f"@alice:{SERVER_NAME}"
        # Nor does it matter that all of them are new: what they share is in the database.
        await server.wait_live(3)
        browser = Browser(make().browse)
        back = await browser.at_provider(await browser.begin())
        await server.restart()
        await server.wait_live(3)
        after = Browser(make().browse)
        after.cookies = browser.cookies
        client = make()
        assert await log_in(client, await after.get(back)) == f"@alice:{SERVER_NAME}"


async def test_two_workers_make_one_account_of_one_person() -> None:
    """Who clicks twice would have two accounts, or an error."""
    async with sso_cluster() as (_, provider, make):
        clients = [make(name) for name in ("worker1", "worker2", "worker3")]
        for number in range(5):
            provider.person = {"sub": f"s{number}", "preferred_username": f"user{number}"}
            browsers = [Browser(client.browse) for client in clients]
            backs = [await browser.at_provider(await browser.begin()) for browser in browsers]
            replies = await asyncio.gather(
                *(browser.get(back) for browser, back in zip(browsers, backs, strict=True))
            )
            users = [await log_in(make(), reply) for reply in replies]
            assert set(users) == {f"@user{number}:{SERVER_NAME}"}
