"""The account endpoints with a provider of single sign-on."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ranvier.http.limits import Rate
from tests.account_server import OPEN, AccountServer, account_server
from tests.oidc_provider import BASE, Provider, Reply, login_token

TRUSTED = {"client_whitelist": ["https://app.example.com/"]}
PICK = "/_synapse/client/pick_username/account_details"


def settings(*providers: Mapping[str, Any], **changes: Any) -> str:
    """Write a configuration with some providers; only ``app.example.com`` is trusted."""
    fields = {"public_baseurl": BASE, "oidc_providers": providers, "sso": TRUSTED, **changes}
    return OPEN + "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())


@asynccontextmanager
async def sso_server(
    database: str,
    provider: Provider,
    *,
    rates: dict[str, Rate] | None = None,
    sso: Mapping[str, Any] = TRUSTED,
    timeout_s: float = 30.0,
    **changes: Any,
) -> AsyncIterator[AccountServer]:
    """Run a server with a provider, whose settings are changed and which has ``timeout_s`` to answer."""
    text = settings(provider.settings(**changes), sso=sso)
    async with account_server(database, text, rates=rates, provider_timeout_s=timeout_s) as server:
        provider.now_s = lambda: server.clock.now_ms() / 1000
        yield server


async def session_of(server: AccountServer, reply: Reply) -> Any:
    """Log in with the token that a client was given, as the client does."""
    answer = await server.post("/v3/login", {"type": "m.login.token", "token": login_token(reply)})
    assert answer.status == 200, answer
    return answer.body


def plain(reply: Reply) -> str:
    """Give the words of a page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", reply.text)))
