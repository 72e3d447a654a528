"""A Matrix client as the bench needs it: every answer is checked, and a wrong one ends the run."""

from __future__ import annotations

from itertools import count
from typing import Any
from urllib.parse import quote

import orjson

from bench.http_client import Connection

V3 = "/_matrix/client/v3"
_transactions = count()


class WrongAnswerError(Exception):
    """A server answered something else than the specification (and the scenario) calls for."""


def check(condition: bool, what: str) -> None:
    """Raise WrongAnswerError saying `what` unless the condition holds."""
    if not condition:
        raise WrongAnswerError(what)


class Client:
    """One user on one device with one connection."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self.host, self.port, self.name = host, port, name
        self.connection = Connection(host, port)
        self.user_id = ""
        self.token: str | None = None

    def twin(self) -> Client:
        """Return a client with the same access token on a connection of its own."""
        twin = Client(self.host, self.port, self.name)
        twin.user_id, twin.token = self.user_id, self.token
        return twin

    async def call(self, method: str, target: str, content: object = None) -> dict[str, Any]:
        """Return the JSON object of an answer with status 200; raises WrongAnswerError for any other."""
        body = None if content is None else orjson.dumps(content)
        answer = await self.connection.request(method, target, token=self.token, body=body)
        if answer.status != 200:
            raise WrongAnswerError(f"{method} {target}: {answer.status} {answer.body[:500]!r}")
        result = orjson.loads(answer.body)
        return result if isinstance(result, dict) else {"list": result}

    async def register(self, password: str) -> None:
        """Register this client's name with the dummy stage, and stay logged in."""
        content = {
            "username": self.name,
            "password": password,
            "auth": {"type": "m.login.dummy"},
            "initial_device_display_name": "bench",
        }
        answer = await self.call("POST", f"{V3}/register", content)
        self.user_id, self.token = answer["user_id"], answer["access_token"]
        check(self.user_id.startswith(f"@{self.name}:"), f"registered as {self.user_id}")

    async def create_room(self, name: str) -> str:
        """Create a public room and return its ID."""
        content = {"preset": "public_chat", "name": name}
        room_id: str = (await self.call("POST", f"{V3}/createRoom", content))["room_id"]
        check(room_id.startswith("!"), f"created room {room_id}")
        return room_id

    async def join(self, room_id: str) -> None:
        """Join a room by its ID."""
        answer = await self.call("POST", f"{V3}/rooms/{quote(room_id, safe='')}/join", {})
        check(answer["room_id"] == room_id, f"joined {answer['room_id']} for {room_id}")

    async def send(self, room_id: str, body: str) -> str:
        """Send a text message and return its event ID."""
        path = f"{V3}/rooms/{quote(room_id, safe='')}/send/m.room.message/bench{next(_transactions)}"
        answer = await self.call("PUT", path, {"msgtype": "m.text", "body": body})
        event_id: str = answer["event_id"]
        check(event_id.startswith("$"), f"sent as {event_id}")
        return event_id

    async def upload_filter(self, content: object) -> str:
        """Store a filter and return its ID."""
        answer = await self.call("POST", f"{V3}/user/{quote(self.user_id, safe='')}/filter", content)
        return str(answer["filter_id"])

    async def whoami(self) -> None:
        """Ask whose token this is."""
        answer = await self.call("GET", f"{V3}/account/whoami")
        check(answer["user_id"] == self.user_id, f"taken for {answer['user_id']}")

    async def sync(self, query: str) -> dict[str, Any]:
        """Return the answer of /sync with a ready query string."""
        return await self.call("GET", f"{V3}/sync?{query}")

    async def messages(self, room_id: str, limit: int, start: str = "") -> dict[str, Any]:
        """Return one page of a room's history, backwards from `start` or from the end."""
        place = f"&from={quote(start, safe='')}" if start else ""
        return await self.call(
            "GET", f"{V3}/rooms/{quote(room_id, safe='')}/messages?dir=b&limit={limit}{place}"
        )

    async def state(self, room_id: str) -> list[dict[str, Any]]:
        """Return the current state events of a room."""
        state: list[dict[str, Any]] = (await self.call("GET", f"{V3}/rooms/{quote(room_id, safe='')}/state"))[
            "list"
        ]
        return state
