"""A device that speaks plain HTTP: no SDK between the test and the server."""

import itertools
import json
import secrets
from typing import Any
from urllib.parse import quote

import aiohttp
from nacl.encoding import RawEncoder
from nacl.signing import SigningKey
from unpaddedbase64 import encode_base64

from tests.clients.homeserver import Homeserver

Json = dict[str, Any]
CLIENT = "/_matrix/client/v3"


class HttpSession:
    """One device of one user."""

    def __init__(self, http: aiohttp.ClientSession, url: str, login: Json) -> None:
        self._http = http
        self._url = url
        self._headers = {"Authorization": f"Bearer {login['access_token']}"}
        self._txn = itertools.count(1)
        self.user_id: str = login["user_id"]
        self.device_id: str = login["device_id"]

    async def call(self, method: str, path: str, body: Json | None = None, **query: str) -> tuple[int, Json]:
        """Call `path` below the client API and return status and answer; a 5xx is an AssertionError."""
        async with self._http.request(
            method,
            f"{self._url}{CLIENT}{path}",
            json={} if body is None and method in ("POST", "PUT") else body,
            params=query,
            headers=self._headers,
        ) as response:
            answer = await response.json()
            assert response.status < 500, (method, path, response.status, answer)
            return response.status, answer

    async def ok(self, method: str, path: str, body: Json | None = None, **query: str) -> Json:
        """Call and insist on 200."""
        status, answer = await self.call(method, path, body, **query)
        assert status == 200, (method, path, status, answer)
        return answer

    def txn(self) -> str:
        """Make a transaction ID that this device has not used."""
        return f"t{next(self._txn)}"

    async def log_in_again(self, password: str) -> "HttpSession":
        """Make one more device of this user."""
        identifier = {"type": "m.id.user", "user": self.user_id}
        body = {"type": "m.login.password", "identifier": identifier, "password": password}
        return HttpSession(self._http, self._url, await self.ok("POST", "/login", body))

    async def upload_device_keys(self) -> None:
        """Give this device new identity keys, signed as clients sign them."""
        signing = SigningKey.generate()
        name = f"ed25519:{self.device_id}"
        keys: Json = {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                name: encode_base64(signing.verify_key.encode()),
                f"curve25519:{self.device_id}": encode_base64(secrets.token_bytes(32)),
            },
        }
        text = json.dumps(keys, sort_keys=True, separators=(",", ":")).encode()
        signature = encode_base64(signing.sign(text, encoder=RawEncoder).signature)
        keys["signatures"] = {self.user_id: {name: signature}}
        await self.ok("POST", "/keys/upload", {"device_keys": keys})


async def register(
    http: aiohttp.ClientSession, homeserver: Homeserver, localpart: str, password: str
) -> HttpSession:
    """Make an account with its first device."""
    body = {"username": localpart, "password": password, "auth": {"type": "m.login.dummy"}}
    async with http.post(f"{homeserver.url}{CLIENT}/register", json=body) as response:
        login = await response.json()
        assert response.status == 200, login
    return HttpSession(http, homeserver.url, login)


def path_of(*parts: str) -> str:
    """Join path segments, each percent-encoded."""
    return "".join("/" + quote(part, safe="") for part in parts)
