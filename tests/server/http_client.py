"""A plain Matrix client for tests: requests as JSON, nothing kept but the token."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

_names = itertools.count(1)


def bodies(answer: Any, room_id: str) -> list[str]:
    """Give the texts of a room's timeline in a sync answer."""
    room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
    events = room.get("timeline", {}).get("events", [])
    return [it["content"]["body"] for it in events if it["type"] == "m.room.message"]


def position(token: str) -> int:
    """Give the position of a sync token."""
    return int(token[1:].partition("_")[0])


class Refused(Exception):
    """Carry an answer that is not 200."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body
        self.errcode = body.get("errcode") if isinstance(body, dict) else None


class Unavailable(Refused):
    """Carry an answer that says to come again (503)."""


class HttpClient:
    """Talk to one server, as one device or as nobody."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.token = token
        self.user_id = ""
        self.device_id = ""
        self._session: aiohttp.ClientSession | None = None
        self._txn = itertools.count(1)

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request (``path`` after ``/_matrix/client``) and give the answer. Raises Refused."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = self.url + (path if path.startswith("/_") else f"/_matrix/client{path}")
        async with self._session.request(
            method, url, json=body, params={k: str(v) for k, v in query.items()}, headers=headers
        ) as response:
            answer = await response.json(content_type=None)
            if response.status != 200:
                raise (Unavailable if response.status == 503 else Refused)(response.status, answer)
            return answer

    async def get(self, path: str, **query: Any) -> Any:
        """GET."""
        return await self.request("GET", path, **query)

    async def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """POST."""
        return await self.request("POST", path, {} if body is None else body, **query)

    async def put(self, path: str, body: Any = None, **query: Any) -> Any:
        """PUT."""
        return await self.request("PUT", path, {} if body is None else body, **query)

    async def is_up(self) -> bool:
        """Tell whether the server answers."""
        try:
            await self.get("/versions")
        except (aiohttp.ClientError, ConnectionError):
            return False
        return True

    async def register(self, name: str | None = None, password: str = "a long password") -> HttpClient:
        """Make an account and log this client in."""
        body = {
            "username": name or f"user{next(_names)}",
            "password": password,
            "auth": {"type": "m.login.dummy"},
        }
        self._logged_in(await self.post("/v3/register", body))
        return self

    async def register_admin(self, secret: str, name: str, password: str = "a long password") -> HttpClient:
        """Make an administrator by the shared secret of registrations, and log this client in."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.get(path))["nonce"]
        message = "\0".join((nonce, name, password, "admin")).encode()
        mac = hmac.new(secret.encode(), message, hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "mac": mac, "admin": True}
        self._logged_in(await self.post(path, body))
        return self

    async def login(self, user: str, password: str = "a long password") -> HttpClient:
        """Log in with a new device."""
        identifier = {"type": "m.id.user", "user": user}
        self._logged_in(
            await self.post(
                "/v3/login", {"type": "m.login.password", "identifier": identifier, "password": password}
            )
        )
        return self

    def _logged_in(self, answer: Any) -> None:
        self.token, self.user_id, self.device_id = (
            answer["access_token"],
            answer["user_id"],
            answer["device_id"],
        )

    async def create_room(self, **options: Any) -> str:
        """Make a room and give its id."""
        room_id: str = (await self.post("/v3/createRoom", {"preset": "public_chat", **options}))["room_id"]
        return room_id

    async def join(self, room_id: str) -> None:
        """Join a room."""
        await self.post(f"/v3/rooms/{quote(room_id)}/join")

    async def send(self, room_id: str, body: str, txn_id: str | None = None) -> str:
        """Send a text and give the event's id."""
        txn = txn_id or f"t{next(self._txn)}"
        content = {"msgtype": "m.text", "body": body}
        answer = await self.put(f"/v3/rooms/{quote(room_id)}/send/m.room.message/{quote(txn)}", content)
        event_id: str = answer["event_id"]
        return event_id

    async def sync(self, since: str | None = None, timeout_ms: int = 0, **query: Any) -> Any:
        """Sync once."""
        if since is not None:
            query["since"] = since
        return await self.get("/v3/sync", timeout=timeout_ms, **query)
