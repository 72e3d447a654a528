"""The account endpoints on a real socket and a real database, without the rest of the server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yarl

from ranvier.client_api import (
    account,
    account_moderation,
    auth_fallback,
    discovery,
    login,
    registration,
    sso,
)
from ranvier.config import Config, load
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import bind
from ranvier.log.bus import LocalBus
from ranvier.processes.accounts import AccountParts, build_accounts
from ranvier.processes.sso import build_sso
from ranvier.storage.profiles import ProfileStore
from ranvier.users.profiles import ProfileRules, Profiles
from tests.core import KEY, SERVER_NAME, Core, running_core
from tests.oidc_provider import Reply

OPEN = """
enable_registration: true
enable_registration_without_verification: true
registration_shared_secret: "the secret"
password_config: {argon2: {time_cost: 1, memory: 64K}}
"""
CHEAP = "password_config: {argon2: {time_cost: 1, memory: 64K}}\n"
PASSWORD = "correct horse"
ROUTES = [
    *account.ROUTES,
    *account_moderation.ROUTES,
    *auth_fallback.ROUTES,
    *discovery.ROUTES,
    *login.ROUTES,
    *registration.ROUTES,
    *sso.ROUTES,
]


class SteppingClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


@dataclass
class Answer:
    """What came back."""

    status: int
    body: Any

    @property
    def errcode(self) -> str | None:
        return self.body.get("errcode") if isinstance(self.body, dict) else None


@dataclass
class AccountServer:
    """A running server; ``departed`` are the users who were told to leave their rooms."""

    url: str
    core: Core
    parts: AccountParts
    clock: SteppingClock
    http: aiohttp.ClientSession
    departed: list[tuple[str, bool]] = field(default_factory=list)

    async def call(
        self, method: str, path: str, body: Any = None, access: str | None = None, **query: str
    ) -> Answer:
        """Send a request; ``path`` is what follows ``/_matrix/client``, or a whole path."""
        url = self.url + (path if path.startswith(("/_", "/.")) else f"/_matrix/client{path}")
        headers = {"Authorization": f"Bearer {access}"} if access else {}
        async with self.http.request(method, url, json=body, params=query, headers=headers) as response:
            return Answer(response.status, await response.json(content_type=None))

    async def browse(
        self, method: str, path: str, headers: dict[str, str], form: dict[str, str] | str | None = None
    ) -> Reply:
        """Send a request as a browser does, and follow no redirect."""
        url = yarl.URL(self.url + path, encoded=True)
        async with self.http.request(
            method, url, data=form, headers=headers, allow_redirects=False
        ) as response:
            return Reply(response.status, response.headers, await response.text())

    async def get(self, path: str, access: str | None = None, **query: str) -> Answer:
        """GET."""
        return await self.call("GET", path, access=access, **query)

    async def post(self, path: str, body: Any = None, access: str | None = None, **query: str) -> Answer:
        """POST."""
        return await self.call("POST", path, {} if body is None else body, access, **query)

    async def register(self, username: str, **fields: Any) -> Any:
        """Make an account with PASSWORD and give the answer."""
        answer = await self.post(
            "/v3/register",
            {"username": username, "password": PASSWORD, "auth": {"type": "m.login.dummy"}, **fields},
        )
        assert answer.status == 200, answer
        return answer.body

    async def login(self, user: str, password: str = PASSWORD, **fields: Any) -> Answer:
        """Log in with a password."""
        identifier = {"type": "m.id.user", "user": user}
        body = {"type": "m.login.password", "identifier": identifier, "password": password, **fields}
        return await self.post("/v3/login", body)

    async def whoami(self, token: str) -> Answer:
        """Ask who holds a token."""
        return await self.get("/v3/account/whoami", token)


def read_config(text: str) -> Config:
    """Load a configuration of a server named example.org."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "homeserver.yaml"
        file.write_text(f"server_name: example.org\n{text}\n")
        return load([file])


@asynccontextmanager
async def account_server(
    dsn: str,
    text: str = OPEN,
    *,
    rates: dict[str, Rate] | None = None,
    bus: LocalBus | None = None,
    provider_timeout_s: float = 10.0,
) -> AsyncIterator[AccountServer]:
    """Run a server with a configuration; no rates limit anything unless they are given."""
    config, clock = read_config(text), SteppingClock()
    departed: list[tuple[str, bool]] = []

    async def depart(user_id: str, erase: bool) -> None:
        departed.append((user_id, erase))

    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(running_core(dsn, bus=bus))
        limiter = RateLimiter(rates or {})
        parts = build_accounts(core, config, clock=clock, limiter=limiter, depart=depart)
        stack.callback(parts.passwords.close)
        profiles = Profiles(
            store=ProfileStore(core.database),
            appender=core.appender,
            tail=core.tail,
            memberships=core.memberships,
            rules=ProfileRules(SERVER_NAME),
        )
        single_sign_on = await build_sso(
            core,
            config,
            parts,
            clock=clock,
            signing_key=KEY,
            set_display_name=lambda user_id, name: profiles.set_field(user_id, "displayname", name),
            timeout_s=provider_timeout_s,
        )
        named = {**vars(parts), "config": config, "clock": clock, "limiter": limiter, "sso": single_sign_on}
        application = Application(
            {"client": bind(ROUTES, named)},
            authentication=RequestAuthentication(parts.access_tokens),
            limiter=limiter,
            metrics=Metrics(),
            clock=clock.monotonic,
            seen=parts.last_seen.note,
        )
        listener = Listener(ListenerSettings((TcpAddress("127.0.0.1", 0),)), application.endpoint(["client"]))
        await listener.start()
        stack.push_async_callback(listener.stop, grace_s=2)
        http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        address = listener.addresses[0]
        assert isinstance(address, TcpAddress)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        leaving = tasks.create_task(parts.deactivation.run())
        stack.callback(leaving.cancel)
        yield AccountServer(f"http://127.0.0.1:{address.port}", core, parts, clock, http, departed)
