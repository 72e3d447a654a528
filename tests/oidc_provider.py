"""An OpenID provider for the tests, on the loopback, and a browser that goes to it and comes back.

It checks what a provider is to check of this server, and answers wrongly when a test says so.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import aiohttp
import orjson
from aiohttp import web

CLIENT_ID, SECRET = "ranvier", "s3cret: +/%"
BASE = "https://matrix.example.org/"
CLIENT = "https://app.example.com/#/login?x=1"
ALICE = {"sub": "f81d-alice", "preferred_username": "alice", "name": "Alice Ä."}

_numbers = itertools.count(1)


def jwt(claims: Mapping[str, Any]) -> str:
    """Make a token whose signature nobody can check."""
    parts = (orjson.dumps({"alg": "RS256", "kid": "1"}), orjson.dumps(claims), b"signature")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@dataclass
class Provider:
    """A provider where ``person`` is logged in. ``now_s`` is its clock.

    ``id_token`` goes over what it says of them, and ``document`` over what it says of itself; ``answers`` are
    other answers than the right ones, by the last part of the path. ``refused`` are the words with which it
    refused this server.
    """

    url: str = ""
    person: dict[str, Any] = field(default_factory=lambda: dict(ALICE))
    now_s: Callable[[], float] = time.time
    id_token: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    public_client: bool = False
    names_itself: bool = True
    document: dict[str, Any] = field(default_factory=dict)
    _codes: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer anything."""
        name = request.path.rpartition("/")[2]
        self.asked.append(name)
        if other := self.answers.get(name):
            return await other(request)
        found: web.StreamResponse = await {
            "openid-configuration": self._discovery,
            "authorize": self._authorize,
            "token": self._token,
            "userinfo": self._userinfo,
        }[name](request)
        return found

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize?realm=a",
                "token_endpoint": f"{self.url}/token",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "code_challenge_methods_supported": ["plain", "S256"],
                **self.document,
            }
        )

    async def _authorize(self, request: web.Request) -> web.Response:
        """Log ``person`` in without a word, as a provider where one is logged in already."""
        query = request.query
        assert (query["client_id"], query["response_type"]) == (CLIENT_ID, "code")
        assert query["realm"] == "a"
        code = secrets.token_urlsafe(12)
        self._codes[code] = {**query, "person": dict(self.person)}
        back = {"code": code, "state": query["state"], **({"iss": self.url} if self.names_itself else {})}
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(back)}")

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        wrong = self._wrong_client(request, form)
        begun = self._codes.pop(str(form.get("code")), None)
        if wrong is None and begun is None:
            wrong = "invalid_grant"
        if wrong is None and begun is not None:
            wrong = self._wrong_grant(form, begun)
        if wrong is not None or begun is None:
            self.refused.append(str(wrong))
            return web.json_response({"error": wrong, "error_description": "<b>no</b>"}, status=400)
        now_s = int(self.now_s())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "iat": now_s,
            "exp": now_s + 300,
            "nonce": begun.get("nonce"),
            **begun["person"],
            **self.id_token,
        }
        token = {
            "access_token": "at-" + begun["person"]["sub"],
            "token_type": "Bearer",
            "id_token": jwt(claims),
        }
        return web.json_response(token)

    def _wrong_client(self, request: web.Request, form: Mapping[str, Any]) -> str | None:
        if self.public_client:
            return None if form.get("client_id") == CLIENT_ID else "invalid_client"
        if "client_secret" in form:
            pair = str(form.get("client_id")), str(form["client_secret"])
        else:
            scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
            decoded = base64.b64decode(encoded).decode() if scheme == "Basic" else ":"
            name, _, secret = decoded.partition(":")
            pair = unquote_plus(name), unquote_plus(secret)
        return None if pair == (CLIENT_ID, SECRET) else "invalid_client"

    def _wrong_grant(self, form: Mapping[str, Any], begun: Mapping[str, Any]) -> str | None:
        if (
            form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != begun["redirect_uri"]
        ):
            return "invalid_grant"
        challenge = begun.get("code_challenge")
        digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        expected = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if challenge is not None and (begun["code_challenge_method"], challenge) != ("S256", expected):
            return "invalid_grant"
        return None

    async def _userinfo(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer at-" + self.person["sub"]:
            return web.json_response({"error": "invalid_token"}, status=401)
        return web.json_response({**self.person, **self.userinfo})

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Give a provider of the configuration that is this one."""
        mapping = {
            "localpart_template": "{{ user.preferred_username }}",
            "display_name_template": "{{ user.name }}",
        }
        return {
            "idp_id": "corp",
            "idp_name": "Corp <Ltd>",
            "issuer": self.url,
            "client_id": CLIENT_ID,
            "client_secret": SECRET,
            "user_mapping_provider": {"config": {**mapping, **changes.pop("mapping", {})}},
            **changes,
        }


@asynccontextmanager
async def running_provider(tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    """Run a provider on a free port; with ``tls`` at https://localhost."""
    provider = Provider()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", provider.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host = "http://127.0.0.1" if tls is None else "https://localhost"
    provider.url = f"{host}:{runner.addresses[0][1]}/realms/r{next(_numbers)}"
    try:
        yield provider
    finally:
        await runner.cleanup()


@dataclass
class Reply:
    """What a browser got."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def location(self) -> str:
        """Where it is sent."""
        return self.headers["Location"]


Ask = Callable[[str, str, dict[str, str], dict[str, str] | None], Awaitable[Reply]]
"""Send method, raw path with query, headers and a form to the server."""


class Browser:
    """A person's browser: it keeps cookies, and follows no redirect by itself."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.cookies: dict[str, str] = {}

    async def send(self, method: str, path: str, form: dict[str, str] | None = None) -> Reply:
        """Send a request to the server with the cookies of it."""
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}
        reply = await self._ask(method, path, headers, form)
        for name, morsel in SimpleCookie(reply.headers.get("Set-Cookie", "")).items():
            self.cookies[name] = morsel.value
            if morsel["max-age"] == "0":
                del self.cookies[name]
        return reply

    async def get(self, path: str) -> Reply:
        """GET."""
        return await self.send("GET", path)

    async def begin(self, client: str = CLIENT, way: str = "") -> str:
        """Begin to log in, and give where the provider is to be found."""
        query = urlencode({"redirectUrl": client})
        reply = await self.get(f"/_matrix/client/v3/login/sso/redirect{way}?{query}")
        assert reply.status == 302, reply
        return reply.location

    async def at_provider(self, url: str) -> str:
        """Log in at the provider, and give the path by which one comes back."""
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, allow_redirects=False, ssl=False) as response,
        ):
            assert response.status == 302, await response.text()
            back = response.headers["Location"]
        assert re.match(f"{BASE}_synapse/client/oidc/callback[/?]", back), back
        return "/" + back.removeprefix(BASE)

    async def agree(self, page: Reply) -> Reply:
        """Say that an app that is not trusted gets access, on the page that asks."""
        state = re.search(r'name="state" value="([^"]+)"', page.text)
        assert page.status == 200, page
        assert state is not None, page
        return await self.send("POST", "/_synapse/client/give_access", {"state": state[1]})

    async def log_in(self, client: str = CLIENT) -> Reply:
        """Log in and come back."""
        return await self.get(await self.at_provider(await self.begin(client)))


def login_token(reply: Reply) -> str:
    """Find the login token that a client is given."""
    assert reply.status == 302, reply
    return parse_qs(urlsplit(reply.location).query)["loginToken"][0]
